"""Directories of the host, opened beneath `--hostfs` so that no symbolic link can lead elsewhere.

The kernel resolves (`openat2`, no links at all) and what it resolved is held by descriptor until it is
mounted. A link is refused rather than resolved: who can write in a directory on the way could otherwise choose
what is mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from storage import linux
from volumedriver.errors import DriverError, HostPathRefused, InvalidVolume, MountFailed, reason, shown
from volumedriver.options import Creation

_RESOLVE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_PARENT = Creation()


class HostDirectories:
    """The host's directories, seen at `hostfs`.

    Raises:
        OSError: `hostfs` is not a directory.
    """

    def __init__(self, hostfs: str) -> None:
        self._root_fd = os.open(hostfs, _DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._root_fd)

    @contextlib.contextmanager
    def opened(self, path: str, creation: Creation | None) -> Iterator[int]:
        """An O_PATH descriptor of the directory at `path`, absolute and canonical.

        With `creation` what is missing is made; it is removed again if the `with` body fails. What exists is
        never altered.

        Raises:
            InvalidVolume: it does not exist, or is not a directory.
            HostPathRefused: a symbolic link is on the way.
            MountFailed: the kernel refuses for another reason.
        """
        with contextlib.ExitStack() as held, contextlib.ExitStack() as undo:
            try:
                fd = self._open(path, creation, held, undo)
            except OSError as error:
                raise self._explained(path, error) from error
            yield fd
            undo.pop_all()

    def _open(
        self,
        path: str,
        creation: Creation | None,
        held: contextlib.ExitStack,
        undo: contextlib.ExitStack,
    ) -> int:
        try:
            return _held(held, linux.openat2(self._root_fd, path[1:], _DIRECTORY, _RESOLVE))
        except FileNotFoundError:
            if creation is None:
                raise
        fd = self._root_fd
        *parents, last = path[1:].split("/")
        for name in parents:
            fd = _held(held, _entered(fd, name, _PARENT, undo))
        return _held(held, _entered(fd, last, creation, undo))

    def _explained(self, path: str, error: OSError) -> DriverError:
        if error.errno == errno.ENOENT:
            return InvalidVolume(
                f"host_path {shown(path)} does not exist on this host; make it (type=host can, by create=true)"
            )
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            return self._obstacle(path)
        return MountFailed(f"host_path {shown(path)} cannot be opened: {reason(error)}")

    def _obstacle(self, path: str) -> DriverError:
        """Which part of `path` is not a directory; asked only after the kernel has refused the whole."""
        parts = path[1:].split("/")
        for count in range(1, len(parts) + 1):
            part = "/" + "/".join(parts[:count])
            with contextlib.ExitStack() as held:
                try:
                    fd = _held(held, linux.openat2(self._root_fd, part[1:], os.O_PATH | os.O_NOFOLLOW, _RESOLVE))
                    mode = os.fstat(fd).st_mode
                    target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(mode) else None
                except OSError:
                    break
            if target is not None:
                return HostPathRefused(
                    f"host_path {shown(path)} passes through the symbolic link {shown(part)} -> {shown(target)};"
                    " give the real path"
                )
            if not stat.S_ISDIR(mode):
                return InvalidVolume(f"host_path {shown(path)} is not a directory: {shown(part)} is a file")
        return HostPathRefused(f"host_path {shown(path)} kept changing while it was opened; try again")


def _held(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _entered(parent_fd: int, name: str, creation: Creation, undo: contextlib.ExitStack) -> int:
    """A descriptor of the directory `name` in `parent_fd`, which is made where it is missing."""
    with contextlib.suppress(FileNotFoundError):
        return linux.openat2(parent_fd, name, _DIRECTORY, _RESOLVE)
    try:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:  # somebody else made it in between: theirs, not ours to alter
        return linux.openat2(parent_fd, name, _DIRECTORY, _RESOLVE)
    undo.callback(_remove_empty, name, parent_fd)
    fd = linux.openat2(parent_fd, name, os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
    try:
        _give_away(fd, name, creation)
    except OSError:
        os.close(fd)
        raise
    return fd


def _give_away(fd: int, name: str, creation: Creation) -> None:
    """Set owner, then permissions: chown(2) clears the set-id bits."""
    if os.fstat(fd).st_uid != os.geteuid():  # a directory of somebody else was moved to our name
        raise OSError(errno.ELOOP, "the new directory was replaced", name)
    os.fchown(fd, creation.uid, creation.gid)
    os.fchmod(fd, creation.mode)


def _remove_empty(name: str, parent_fd: int) -> None:
    with contextlib.suppress(OSError):  # somebody uses it by now: theirs
        os.rmdir(name, dir_fd=parent_fd)
