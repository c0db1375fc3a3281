"""Mounts and mountpoints: what is mounted where, and taken off again. For NFS, workers do what may wait.

Everything goes by descriptor: the source is cloned from the descriptor that was checked, made private and
read-only while it is still detached, and only then attached. So no path can be exchanged in between, and no
container sees a moment of it that was writable or tied to the host's own mounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import structlog

from storage.mountinfo import Mount, parse_mounts, read_mounts
from volumedriver import mountcalls
from volumedriver.errors import MountFailed, reason
from volumedriver.holders import Hold
from volumedriver.holds import Holds
from volumedriver.nfs import NfsMounts, NfsSource
from volumedriver.volume import SOURCE_OF_TOKENS, Shown
from volumedriver.workers import Workers

log = structlog.get_logger()

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NFS_TYPES = frozenset(("nfs", "nfs4"))

Source = int | NfsSource | Hold | None
"""What to mount: the directory behind a descriptor, an NFS export, what a process holds, or a token."""


class Mounter(Protocol):
    """Shows directories at mountpoints. Callers never work on one mountpoint from two threads at once."""

    def mount(self, source: Source, mountpoint: str, *, read_only: bool) -> None:
        """Show the directory behind the descriptor `source`, without what is mounted beneath it, at `mountpoint`,
        or an NFS export, or the same that a process has mounted in its own mount namespace.

        None is for a volume without files: what is mounted then is its *token*, an empty directory of a file
        system that is this mount's alone. Nobody can write there, not even root; whether the mount itself is
        read-only can still be told, by everybody who sees it.

        The mountpoint is made where it is missing, and removed again on failure. The mount is not tied to
        the source's: what is mounted or unmounted below one of them later does not appear below the other.

        Raises:
            MountFailed: also where something is mounted there: nothing is ever mounted on top.
            InvalidVolume, NfsServerRefused, NfsUnavailable: the export is not there, not allowed, or its server
                does not answer.
        """

    def unmount(self, mountpoint: str) -> None:
        """Take everything off `mountpoint` at once, in use or not, and remove the mountpoint.

        That nothing is mounted there, or that it does not exist, is no error. The mountpoint is removed only
        while empty: files are never removed.

        Raises:
            MountFailed: it is still mounted.
        """

    def is_mounted(self, mountpoint: str) -> bool:
        """Whether something is mounted at exactly `mountpoint`. Never waits for a file system."""

    def shown(self, mountpoint: str) -> list[Shown]:
        """What is mounted at exactly `mountpoint`: each mount on top of the one before. Never waits, as above."""

    def stale(self, holds: Sequence[Hold]) -> list[Hold] | None:
        """Those NFS mounts whose server does not know them any more. None where it says nothing for a second."""

    def mountpoints(self, directory: str) -> dict[str, list[Shown]]:
        """The paths in `directory`, one level down, at which something is mounted, and what."""


class KernelMounter:
    """The real one. Needs Linux 5.12 and CAP_SYS_ADMIN.

    Args:
        nfs: does what has to do with NFS, whoever mounted it, since it may wait for a server.
        holds: does what has to do with mounts of other processes.

    Raises:
        MountFailed: one of them is missing.
    """

    def __init__(self, nfs: NfsMounts | None = None, holds: Holds | None = None) -> None:
        self._nfs = nfs or NfsMounts(Workers())
        self._holds = holds or Holds(Workers())
        try:
            mountcalls.set_attributes(-1, 0, 0)
        except OSError as error:
            _check_support(error)

    def mount(self, source: Source, mountpoint: str, *, read_only: bool) -> None:
        with _failures("mount at", mountpoint), contextlib.ExitStack() as undo:
            is_new = _make_mountpoint(mountpoint, undo)
            if not is_new and self.is_mounted(mountpoint):
                raise OSError(errno.EBUSY, "something is mounted there already")
            with mountcalls.closing(os.open(mountpoint, _DIRECTORY)) as target:
                if isinstance(source, NfsSource):
                    undo.callback(self._take_off, mountpoint)  # who was killed may have done it
                    self._nfs.mount(source, target, read_only=read_only)
                elif isinstance(source, Hold):
                    undo.callback(self._take_off, mountpoint)
                    self._holds.adopt(source, target, read_only=read_only)
                else:
                    _bind(source, mountpoint, target, read_only=read_only)
            undo.pop_all()

    def unmount(self, mountpoint: str) -> None:
        with _failures("unmount", mountpoint):
            remove = self._take_off(mountpoint)
        _remove_mountpoint(mountpoint, remove)

    def _take_off(self, mountpoint: str) -> Callable[[str], None]:
        """Detach all there is at `mountpoint`; returns what to remove it by. Nothing here waits for a server."""
        remove: Callable[[str], None] = os.rmdir
        detached = None
        while layers := self._layers(mountpoint):
            top = layers[-1]
            if top.mount_id == detached:
                raise OSError(errno.EINVAL, "the mount is locked by another mount namespace")
            detached = top.mount_id
            if top.fs_type in _NFS_TYPES:
                self._nfs.detach(mountpoint)
                remove = self._nfs.remove
            else:
                mountcalls.detached_one(mountpoint)
        return remove

    def is_mounted(self, mountpoint: str) -> bool:
        return bool(self.shown(mountpoint))

    def shown(self, mountpoint: str) -> list[Shown]:
        return [_shown(mount) for mount in self._layers(mountpoint)]

    def _layers(self, mountpoint: str) -> list[Mount]:
        # Only lines that mention the path are parsed: this runs at every Mount, on hosts with many mounts.
        needle = _escaped(mountpoint)
        with open("/proc/self/mountinfo", "rb") as lines:
            mentions = [line for line in lines if needle in line]
        return [mount for mount in parse_mounts(mentions) if mount.mountpoint == mountpoint]

    def stale(self, holds: Sequence[Hold]) -> list[Hold] | None:
        return self._holds.stale(holds)

    def mountpoints(self, directory: str) -> dict[str, list[Shown]]:
        return mounted_in(directory, read_mounts())


def _escaped(path: str) -> bytes:
    """`path` as mountinfo writes it."""
    return re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % ord(match[0]), os.fsencode(path))


def mounted_in(directory: str, mounts: list[Mount]) -> dict[str, list[Shown]]:
    """The mountpoints one level below `directory`, and what is mounted there."""
    found: dict[str, list[Shown]] = {}
    for mount in mounts:
        if os.path.dirname(mount.mountpoint) == directory:
            found.setdefault(mount.mountpoint, []).append(_shown(mount))
    return found


def _shown(mount: Mount) -> Shown:
    return Shown(mount.device, mount.root, mount.source)


def follower_of_root() -> int:
    """A detached copy of `/` and all below it, into which later mounts and unmounts there propagate."""
    tree = mountcalls.cloned_root()
    try:
        mountcalls.set_attributes(tree, 0, mountcalls.SLAVE, recursive=True)
    except OSError:
        os.close(tree)
        raise
    return tree


def replace(mountpoint: str, tree_fd: int) -> None:
    """Exchange what is mounted at `mountpoint` for the detached `tree_fd`, which is closed."""
    with mountcalls.closing(tree_fd):
        with mountcalls.closing(os.open(mountpoint, _DIRECTORY)) as old:
            # Private first, all of it: were anything in it shared with the host, detaching would unmount there.
            mountcalls.set_attributes(old, 0, mountcalls.PRIVATE, recursive=True)
        mountcalls.detached_one(mountpoint)
        with mountcalls.closing(os.open(mountpoint, _DIRECTORY)) as target:
            mountcalls.attach(tree_fd, target)


def _check_support(error: OSError) -> None:
    if error.errno == errno.ENOSYS:
        raise MountFailed(
            "the kernel does not offer mount_setattr(2): brokervol needs Linux 5.12 or newer,"
            f" this is {os.uname().release}"
        ) from error
    if error.errno == errno.EPERM:
        raise MountFailed("the driver may not mount: it needs CAP_SYS_ADMIN") from error


def _bind(source_fd: int | None, mountpoint: str, target_fd: int, *, read_only: bool) -> None:
    tree_fd = _token(mountpoint) if source_fd is None else mountcalls.cloned(source_fd)
    with mountcalls.closing(tree_fd):
        mountcalls.set_attributes(tree_fd, mountcalls.RDONLY if read_only else 0, mountcalls.PRIVATE)
        mountcalls.attach(tree_fd, target_fd)


def _token(mountpoint: str) -> int:
    """A detached mount of a new, empty file system that is read-only itself, whatever the mounts of it are.

    Its source names the volume: device numbers come again, so they alone would not tell two tokens apart.
    """
    with mountcalls.NewFileSystem("tmpfs") as tmpfs:
        tmpfs.set("source", SOURCE_OF_TOKENS + os.path.basename(mountpoint))
        tmpfs.set("mode", "0555")
        tmpfs.set("nr_inodes", "1")
        tmpfs.set("ro", None)
        return tmpfs.mounted(mountcalls.NOSUID | mountcalls.NODEV | mountcalls.NOEXEC)


def _make_mountpoint(mountpoint: str, undo: contextlib.ExitStack) -> bool:
    """Returns whether it was made, and so nothing can be mounted there."""
    directory, name = os.path.split(mountpoint)
    with mountcalls.closing(_opened(directory)) as directory_fd:
        try:
            os.mkdir(name, 0o700, dir_fd=directory_fd)
        except FileExistsError:
            return False
    undo.callback(_remove_mountpoint, mountpoint)
    return True


def _opened(directory: str) -> int:
    """A descriptor of the directory of mountpoints, which is made again where somebody has removed it."""
    with contextlib.suppress(FileExistsError):
        try:
            return os.open(directory, _DIRECTORY)
        except NotADirectoryError as error:  # a link, too: mountinfo would tell other paths than ours
            raise OSError(errno.ENOTDIR, f"{directory} is not a directory") from error
        except FileNotFoundError:
            os.mkdir(directory, 0o700)
    return os.open(directory, _DIRECTORY)


def _remove_mountpoint(mountpoint: str, remove: Callable[[str], None] = os.rmdir) -> None:
    try:
        remove(mountpoint)
    except FileNotFoundError:
        pass
    except OSError as error:  # not empty, or busy: whatever it is, it is not ours to remove
        log.warning("mountpoint left in place", mountpoint=mountpoint, reason=reason(error))


@contextlib.contextmanager
def _failures(action: str, mountpoint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MountFailed(f"cannot {action} {mountpoint}: {reason(error)}") from error
