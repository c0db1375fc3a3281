"""Who is calling, as the kernel says, and the view of files that makes us act as them.

Authority follows the caller: its paths are resolved in its own root directory, its mounts decide what is
read-only, and system calls run with its file-system user, groups and capabilities. Nothing the caller sends
is believed. A process that exits ends its authority, also when its pid is used again: every look at it goes
through descriptors (pidfd, /proc/<pid>) that belong to that one process.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import NoReturn

import structlog

from brokervol.server import Connection
from sidecar.mounts import MountTable, read_table
from storage import linux
from storage.exceptions import InvalidPath, PermissionDenied
from storage.files import WORKSPACE_RESOLVE, Actor, Directory, FileView, SelfView
from storage.mountinfo import Mount
from storage.os_errors import os_errors, quoted

log = structlog.get_logger()

# asm-generic/socket.h; Python 3.11 does not name it.
_SO_PEERPIDFD = 77

# The capabilities that let a process pass file permissions: of those, a caller lends us what it has itself.
# Not those to give files away or to keep set-id bits: nothing here does either.
_FILE_CAPABILITIES = linux.mask(linux.CAP_DAC_OVERRIDE, linux.CAP_DAC_READ_SEARCH, linux.CAP_FOWNER)

EXIT_IDENTITY_LOST = 70

# Whose identity a thread has taken.
_thread = threading.local()


class CallerGone(PermissionDenied):
    """The process that connected has exited, and its authority with it."""


class Caller:
    """One connected process: its identity at connect time, and descriptors of that very process.

    Attributes:
        pid, uid, gid: as this process's namespaces show them.
        groups: supplementary groups.
        container: the 64 digits of the container that it runs in, by its control group; None for none. Of
            nested ones the outermost, since what is below a container's own group is for it to name.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Ask the kernel about the peer of `connection`.

        Raises:
            CallerGone: it has exited.
            PermissionDenied: it cannot be seen from here (no host pid namespace).
        """
        self.pid, self.uid, self.gid = linux.peer_credentials(connection)
        if self.pid <= 0:
            raise PermissionDenied("the caller is in a pid namespace that the sidecar cannot see")
        try:
            self.groups = linux.peer_groups(connection.fileno())
        except OSError as error:
            raise PermissionDenied(f"the kernel does not tell the caller's groups: {error.strerror}") from error
        self._lent = 0  # when its identity was last taken
        self._pidfd = _peer_pidfd(connection, self.pid)
        self._exit = select.poll()
        self._exit.register(self._pidfd, select.POLLIN)
        try:
            self._proc = os.open(f"/proc/{self.pid}", os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            os.close(self._pidfd)
            raise CallerGone("the calling process has exited") from error
        try:
            self.container = self._container()
            self.check_alive()  # so /proc/<pid> is of the process that the pidfd is of
        except CallerGone:
            self.close()
            raise

    @property
    def owner(self) -> str:
        """Whom the caller counts for where many share something: its container, or its user outside of any."""
        return self.container or f"uid {self.uid}"

    def close(self) -> None:
        os.close(self._pidfd)
        os.close(self._proc)

    def check_alive(self) -> None:
        """Raise `CallerGone` if the process has exited."""
        if self._exit.poll(0):
            raise CallerGone("the calling process has exited")

    def open_root(self) -> int:
        """A descriptor of the process's root directory, in its mount namespace."""
        self.check_alive()
        return os.open("root", os.O_PATH | os.O_DIRECTORY, dir_fd=self._proc)

    def mounts(self) -> MountTable:
        """The process's mounts, mountpoints relative to its root."""
        self.check_alive()
        return read_table("mountinfo", self._proc)

    def file_capabilities(self) -> int:
        """The capabilities over files that are lent for the caller: those that a root process has itself.

        Only root lends any, then and now: anybody may exec a set-user-id program on the connected process and
        would lend what that program has. And the user namespace is looked at last: capabilities in one that was
        just made are none here, and nobody comes back from it.
        """
        try:
            status = self._status()
            ours, theirs = os.stat("/proc/self/ns/user"), os.stat("ns/user", dir_fd=self._proc)
        except OSError as error:
            raise CallerGone("the calling process has exited") from error
        users = {self.uid, *(int(user) for user in status["Uid"].split())}
        if users != {0} or (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
            return 0
        return int(status["CapEff"], 16) & _FILE_CAPABILITIES

    def _container(self) -> str | None:
        try:
            found = linux.containers_of(f"/proc/self/fd/{self._proc}")
        except OSError as error:
            raise CallerGone("the calling process has exited") from error
        return found[0] if found else None

    def _status(self) -> dict[str, str]:
        with open(f"/proc/self/fd/{self._proc}/status", encoding="utf-8", errors="replace") as lines:
            fields = (line.partition(":\t") for line in lines)
            return {name: value.strip() for name, _, value in fields}

    @contextmanager
    def identity(self) -> Iterator[None]:
        """Run the block with the caller's file-system identity on this thread; ours is back at its end.

        If it cannot be brought back, the process ends with `EXIT_IDENTITY_LOST`.

        Raises:
            CallerGone: it has exited, and does nothing any more.
        """
        self.check_alive()
        self._lent = self.file_capabilities()
        with self.last_identity():
            yield

    def last_identity(self) -> AbstractContextManager[None]:
        """The identity as last taken, also if the process has exited since: to clear away what was begun."""
        return _worn(self, Actor(self.uid, self.gid, self.groups), self._lent)


@contextmanager
def _worn(whose: object, actor: Actor, lent: int) -> Iterator[None]:
    """Run the block on this thread as the actor, with the capabilities `lent`; ours are back at its end."""
    if getattr(_thread, "whose", None) is whose:  # what was given back inside would be missing outside
        yield
        return
    own_groups = os.getgroups()
    effective, permitted, inheritable = linux.capabilities()
    try:
        _thread.whose = whose
        linux.set_thread_groups(actor.groups)
        linux.set_fs_ids(actor.user, actor.group)
        linux.set_capabilities(lent & permitted, permitted, inheritable)
        yield
    finally:
        try:
            linux.set_capabilities(effective, permitted, inheritable)
            linux.set_thread_groups(own_groups)
            linux.set_fs_ids(os.geteuid(), os.getegid())
            # Changing the file-system user changed the effective set once more.
            linux.set_capabilities(effective, permitted, inheritable)
            _thread.whose = None
        except BaseException as error:  # a thread with a stranger's identity must not go on
            _give_up(error)


class ActorView(SelfView):
    """Our own files, touched as somebody who may have gone: to settle what they began.

    With our own capabilities, which count on this host's file systems. On a server's only the actor does.
    """

    actor: Actor

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    @contextmanager
    def acting(self) -> Iterator[None]:
        with _worn(self, self.actor, _FILE_CAPABILITIES):
            yield


class CallerView(FileView):
    """The files as the caller sees them, touched as the caller. One per request; close it at its end.

    Attributes:
        table: the caller's mounts when the request began.
        held: the mount through which each workspace is held, by mountpoint. Whoever decides what is held sets
            it, and a workspace is opened through that mount or not at all.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.actor = Actor(caller.uid, caller.gid, caller.groups) if caller.uid else None
        self.held: dict[str, Mount] = {}
        with os_errors("look at the caller's files"):
            self._root = caller.open_root()
            try:
                self.table = caller.mounts()
            except BaseException:
                os.close(self._root)
                raise

    def close(self) -> None:
        os.close(self._root)

    def acting(self) -> AbstractContextManager[None]:
        return self._caller.identity()

    def leaving(self) -> AbstractContextManager[None]:
        return self._caller.last_identity()

    def open_root(self) -> Directory:
        return Directory(os.dup(self._root), linux.RESOLVE_IN_ROOT, self._is_covered)

    def open_workspace(self, volume_path: str) -> Directory:
        subject = f"open the workspace at {quoted(volume_path)}"
        with os_errors(subject, missing=InvalidPath):
            found = self._open_mount(self.held[volume_path])
        if found is None:
            raise InvalidPath(f"{subject}: something else is mounted there now")
        return Directory(found, WORKSPACE_RESOLVE, self._is_covered)

    def has_directory(self, mount: Mount) -> bool:
        """Whether the caller's root leads to the mount, and it is of a directory: a file can be mounted, too."""
        try:
            found = self._open_mount(mount)
        except OSError:
            return False
        if found is not None:
            os.close(found)
        return found is not None

    def _open_mount(self, mount: Mount) -> int | None:
        """A descriptor of the directory that is mounted; None where something else is mounted at its place now."""
        with self.open_root() as root:
            found = root.open(mount.mountpoint.lstrip("/"), os.O_PATH | os.O_DIRECTORY)
        try:
            is_right = linux.mount_id(found) == mount.mount_id
        except BaseException:
            os.close(found)
            raise
        if is_right:
            return found
        os.close(found)
        return None

    def _is_covered(self, parent: int, name: str) -> bool:
        """Whether any mount of the caller covers this name, also one made through another mount of the directory.

        The kernel's EBUSY goes by directory entry, so ours must too: by file system and path in it.
        """
        if name not in self._covered_names:
            return False
        mount = self._by_id.get(linux.mount_id(parent))
        if mount is None:
            return False
        above = linux.path_of(self._root).rstrip("/") + mount.mountpoint.rstrip("/")
        path = linux.path_of(parent)
        below = path[len(above) :].strip("/") if path.startswith(above) else ""
        return (mount.device, os.path.normpath(f"{mount.root}/{below}/{name}")) in self._covered

    @cached_property
    def _by_id(self) -> dict[int, Mount]:
        return {mount.mount_id: mount for mount in self.table.mounts}

    @cached_property
    def _covered(self) -> set[tuple[str, str]]:
        """What the caller has mounted something on: (device, path in its file system)."""
        found = set()
        for mount in self.table.mounts:
            under = self._by_id.get(mount.parent_id)
            if under is not None:
                path = os.path.relpath(mount.mountpoint, under.mountpoint)
                found.add((under.device, os.path.normpath(f"{under.root}/{path}")))
        return found

    @cached_property
    def _covered_names(self) -> set[str]:
        """The last components of these paths: few, so that most names need no further look."""
        return {os.path.basename(path) for _, path in self._covered}


def caller_of(connection: Connection) -> Caller:
    """The caller at the other end, found out when the connection was accepted; see `identify`.

    Raises:
        PermissionDenied: it could not be identified, or had exited by then.
    """
    if isinstance(connection.peer, Caller):
        return connection.peer
    raise connection.peer if isinstance(connection.peer, PermissionDenied) else CallerGone("nobody has called")


def identify(connection: Connection) -> None:
    """Find out who is at the other end and keep it with the connection. Call at accept: the caller must not
    choose the moment, since before Linux 6.5 its pid is all there is to go by, and pids come again."""
    try:
        caller = Caller(connection.socket)
    except PermissionDenied as error:
        connection.peer = error
    else:
        connection.peer = caller
        connection.on_close.append(caller.close)


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # what a kernel before 6.5 says; others say that it is gone
            raise CallerGone("the calling process has exited") from error
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise CallerGone("the calling process has exited") from error


def _give_up(error: BaseException) -> NoReturn:
    try:
        log.critical("a thread could not drop its caller's identity; ending the process", error=str(error))
    finally:
        os._exit(EXIT_IDENTITY_LOST)
