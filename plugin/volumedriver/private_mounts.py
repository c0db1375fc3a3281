"""A mount namespace that only one worker is in, where it looks at a mount before anybody can use it.

What is detached the kernel tells little of: not what it is mounted from, and it clones no part of it. So it is
attached for a moment, where no other process and no other mount is.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from storage import linux
from volumedriver import mountcalls

_DIRECTORY = os.O_PATH | os.O_DIRECTORY


class Origin(NamedTuple):
    """Where the kernel says that the files of a mount come from: its source, and the address of the server."""

    source: str
    address: str


class _EmptyNamespace:
    """A mount namespace with an empty directory for a root, and nothing mounted.

    The others are copies of it, because a copy of the host's would be one of each of its mounts.
    """

    def __init__(self) -> None:
        self._fd: int | None = None

    def open(self) -> int:
        if self._fd is None:
            self._fd = _emptied()
        return self._fd


_empty_namespace = _EmptyNamespace()


def prepare() -> None:
    """Do ahead what is done but once, also for processes forked later. This one must have one thread only.

    Raises:
        OSError: this process may have no mount namespaces of its own.
    """
    _empty_namespace.open()


class PrivateMounts:
    """What is mounted in the namespace that this worker is in."""

    def __init__(self, process_fd: int) -> None:
        self._process_fd = process_fd

    def origins(self, *fds: int) -> list[Origin]:
        """Of what these descriptors were opened through."""
        found = {}
        with open(os.open("mountinfo", os.O_RDONLY, dir_fd=self._process_fd), "rb") as lines:
            for line in lines:
                fields = line.split()
                source, options = fields[fields.index(b"-", 6) + 2 :][:2]
                addresses = [word for word in options.split(b",") if word.startswith(b"addr=")]
                address = addresses[-1].removeprefix(b"addr=").decode() if addresses else ""
                found[int(fields[0])] = Origin(source.decode(errors="replace"), address)
        try:
            return [found[linux.mount_id(fd)] for fd in fds]
        except KeyError as error:
            raise OSError(errno.ESTALE, f"the mount {error} is not listed") from error


@contextlib.contextmanager
def attached(tree_fd: int) -> Iterator[PrivateMounts]:
    """Have the detached mount `tree_fd` attached for the body, in a namespace that ends with it.

    In there are no files but those: the body opens nothing by a path, and imports nothing.
    """
    empty_fd = _empty_namespace.open()
    with _returning() as process:
        mountcalls.enter(empty_fd)
        mountcalls.leave_namespace()
        with mountcalls.closing(os.open("/", _DIRECTORY)) as root:
            mountcalls.attach(tree_fd, root)
        yield PrivateMounts(process)


def _emptied() -> int:
    with _returning() as process:
        mountcalls.leave_namespace()
        with mountcalls.NewFileSystem("tmpfs") as file_system:
            tree_fd = file_system.mounted(mountcalls.NOSUID | mountcalls.NODEV | mountcalls.NOEXEC)
        with mountcalls.closing(tree_fd), mountcalls.closing(os.open("/", _DIRECTORY)) as root:
            mountcalls.set_attributes(root, 0, mountcalls.PRIVATE, recursive=True)  # what follows is ours alone
            mountcalls.attach(tree_fd, root)
            mountcalls.make_root(tree_fd)
        return os.open("ns/mnt", os.O_RDONLY, dir_fd=process)


@contextlib.contextmanager
def _returning() -> Iterator[int]:
    """Come back to where this process was, whichever mount namespace the body enters; gives it /proc/self."""
    with (
        mountcalls.closing(os.open("/proc/self", _DIRECTORY)) as process,
        mountcalls.closing(os.open("ns/mnt", os.O_RDONLY, dir_fd=process)) as own,
        mountcalls.closing(os.open("/", _DIRECTORY)) as root,
    ):
        try:
            yield process
        finally:
            try:
                mountcalls.enter(own)
                os.fchdir(root)
                os.chroot(".")  # which need not be the namespace's
            except OSError:
                os._exit(1)  # nobody may go on from somewhere else
