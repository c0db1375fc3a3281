"""Making directories beneath an NFS mount, in a worker: by descriptor, never through a link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from storage import linux

_RESOLVE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_MODE_ABOVE = 0o755


class Ownership(NamedTuple):
    """What a directory is made with."""

    mode: int
    uid: int
    gid: int


def make(tree_fd: int, names: Sequence[str], ownership: Ownership) -> None:
    """Make the directories `names`, each in the one before, below the mount `tree_fd`.

    All belong to the owner; only the last has the mode. They are made as that owner first, and then as root: a
    server may map root to nobody, and a directory may be root's alone. What exists is never altered. If one
    cannot be made, those made before are removed again, while they are empty.

    Raises:
        OSError: with the name of the directory that could not be made.
    """
    above = ownership._replace(mode=_MODE_ABOVE)
    with contextlib.ExitStack() as held, contextlib.ExitStack() as undo:
        fd = tree_fd
        for number, name in enumerate(names, start=1):
            wanted = ownership if number == len(names) else above
            try:
                fd = _entered(fd, name, wanted, undo)
            except OSError as error:
                error.filename = "/".join(names[:number])
                raise
            held.callback(os.close, fd)
        undo.pop_all()


def _entered(parent_fd: int, name: str, wanted: Ownership, undo: contextlib.ExitStack) -> int:
    with contextlib.suppress(FileNotFoundError):
        return linux.openat2(parent_fd, name, os.O_PATH | os.O_DIRECTORY, _RESOLVE)
    owner, root = (wanted.uid, wanted.gid), (0, 0)
    if owner != root:
        with contextlib.suppress(PermissionError):
            return _made(parent_fd, name, wanted, owner, undo)
    return _made(parent_fd, name, wanted, root, undo)


def _made(parent_fd: int, name: str, wanted: Ownership, maker: tuple[int, int], undo: contextlib.ExitStack) -> int:
    with _acting_as(*maker):
        try:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        except FileExistsError:  # somebody else made it in between: theirs, not ours to alter
            return linux.openat2(parent_fd, name, os.O_PATH | os.O_DIRECTORY, _RESOLVE)
        with contextlib.ExitStack() as failed:
            failed.callback(_remove_empty, parent_fd, name, maker)
            fd = linux.openat2(parent_fd, name, _DIRECTORY, _RESOLVE)
            failed.callback(os.close, fd)
            os.fchown(fd, wanted.uid, wanted.gid)
            os.fchmod(fd, wanted.mode)  # after chown(2), which clears the set-id bits
            failed.pop_all()
    undo.callback(_remove_empty, parent_fd, name, maker)
    return fd


def _remove_empty(parent_fd: int, name: str, maker: tuple[int, int]) -> None:
    with _acting_as(*maker), contextlib.suppress(OSError):  # somebody uses it by now: theirs
        os.rmdir(name, dir_fd=parent_fd)


@contextlib.contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    linux.set_fs_ids(uid, gid)
    try:
        yield
    finally:
        linux.set_fs_ids(0, 0)
