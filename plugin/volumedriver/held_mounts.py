"""What a worker does with mounts as processes hold them, which may be in another mount namespace, and may hang.

A path there leads wherever that namespace's owner likes, and its files are theirs: nothing of it is believed that
the kernel does not say of the opened mount itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Sequence

from storage import linux
from volumedriver import mountcalls

_NS_GET_USERNS = 0xB701  # linux/nsfs.h
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_RESOLVE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS


def stale(holds: Iterable[tuple[int, str]]) -> list[int]:
    """The positions of those `holds` (pid, 0 for this process, and mountpoint) whose server does not know them any
    more. What is not there, or fails otherwise, is not stale.
    """
    found = []
    for number, (pid, mountpoint) in enumerate(holds):
        try:
            with mountcalls.closing(_opened(pid, mountpoint)) as fd:
                linux.check_known(fd)
        except OSError as error:
            if error.errno == errno.ESTALE:
                found.append(number)
    return found


def adopt(hold: tuple[int, str, int], attributes: Sequence[int], target_fd: int) -> None:
    """Mount what a process has mounted, as `hold` (pid, mountpoint, id of the mount) says, on the directory of
    `target_fd` too.

    Only from a mount namespace of our own user namespace: in one of their own anybody mounts what looks the same.

    Args:
        attributes: of the mount, to add and to take away.

    Raises:
        OSError: also where something else is there by now.
    """
    pid, mountpoint, mount_id = hold
    with (
        mountcalls.closing(_opened(pid, mountpoint)) as fd,
        mountcalls.closing(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)) as theirs,
    ):
        if linux.mount_id(fd) != mount_id or not _is_of_our_users(theirs):
            raise OSError(errno.EPERM, "what the process has mounted is not what was looked for")
        tree_fd = _cloned(fd, theirs)
    with mountcalls.closing(tree_fd):
        added, taken = attributes
        mountcalls.set_attributes(tree_fd, added, mountcalls.PRIVATE, cleared=taken)
        mountcalls.attach(tree_fd, target_fd)


def _opened(pid: int, mountpoint: str) -> int:
    with mountcalls.closing(os.open(f"/proc/{pid}/root" if pid else "/", _DIRECTORY)) as root:
        return linux.openat2(root, mountpoint, os.O_PATH, _RESOLVE)


def _is_of_our_users(namespace_fd: int) -> bool:
    with mountcalls.closing(fcntl.ioctl(namespace_fd, _NS_GET_USERNS)) as owner:
        theirs, ours = os.fstat(owner), os.stat("/proc/self/ns/user")
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _cloned(fd: int, namespace_fd: int) -> int:
    """A detached mount of what `fd` was opened through; the kernel clones in one's own namespace only."""
    with mountcalls.closing(os.open("/proc/self/ns/mnt", os.O_RDONLY)) as own:
        mountcalls.enter(namespace_fd)  # from here on no file may be opened by its path: they are theirs
        try:
            return mountcalls.cloned(fd)
        finally:
            try:
                mountcalls.enter(own)
            except OSError:
                os._exit(1)
