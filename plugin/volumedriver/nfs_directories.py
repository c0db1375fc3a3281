"""Finding and making directories beneath an NFS mount, in a worker: by descriptor, never through a link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from storage import linux
from volumedriver import mountcalls

_RESOLVE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_MADE = _RESOLVE | linux.RESOLVE_NO_XDEV  # what is new has nothing mounted on it
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_PLACE = os.O_PATH | os.O_DIRECTORY
_MODE_ABOVE = 0o755
_MODE_TO_OPEN = 0o700


class Ownership(NamedTuple):
    """What a directory is made with."""

    mode: int
    uid: int
    gid: int


class NotReached(Exception):
    """A directory could not be opened for `error`. The first `count` names on the way to it could.

    Attributes:
        target: of the symbolic link that the next name is; None where it is none.
    """

    def __init__(self, count: int, error: OSError, target: str | None) -> None:
        super().__init__(count, error, target)
        self.count = count
        self.error = error
        self.target = target


def opened(tree_fd: int, names: Sequence[str]) -> int:
    """An O_PATH descriptor of the directory that `names`, each in the one before, lead to below `tree_fd`.

    What is mounted on the way is entered, and mounted where that takes no more than to go there.

    Raises:
        NotReached: with what is in the way.
    """
    try:
        return linux.openat2(tree_fd, _joined(names), _PLACE, _RESOLVE)
    except OSError as error:
        raise _located(tree_fd, names, error) from error


def _located(tree_fd: int, names: Sequence[str], error: OSError) -> NotReached:
    for count in range(len(names) - 1, -1, -1):
        with (
            contextlib.suppress(OSError),
            mountcalls.closing(linux.openat2(tree_fd, _joined(names[:count]), _PLACE, _RESOLVE)) as fd,
        ):
            target = None
            with contextlib.suppress(OSError):
                target = os.readlink(names[count], dir_fd=fd)
            return NotReached(count, error, target)
    return NotReached(0, error, None)


def _joined(names: Sequence[str]) -> str:
    return "/".join(names) or "."


def made(tree_fd: int, names: Sequence[str], ownership: Ownership) -> int:
    """The same, but what is missing is made; what is mounted is not entered.

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
        found_fd = os.dup(fd)
        undo.pop_all()
        return found_fd


def _entered(parent_fd: int, name: str, wanted: Ownership, undo: contextlib.ExitStack) -> int:
    with contextlib.suppress(FileNotFoundError):
        return linux.openat2(parent_fd, name, _PLACE, _MADE)
    owner, root = (wanted.uid, wanted.gid), (0, 0)
    if owner != root:
        with contextlib.suppress(PermissionError):
            return _made(parent_fd, name, wanted, owner, undo)
    return _made(parent_fd, name, wanted, root, undo)


def _made(parent_fd: int, name: str, wanted: Ownership, maker: tuple[int, int], undo: contextlib.ExitStack) -> int:
    with _acting_as(*maker):
        try:
            # With its mode from the first moment: another mount may be on its way through it, as nobody.
            os.mkdir(name, wanted.mode | _MODE_TO_OPEN, dir_fd=parent_fd)
        except FileExistsError:  # somebody else made it in between: theirs, not ours to alter
            return linux.openat2(parent_fd, name, _PLACE, _MADE)
        with contextlib.ExitStack() as failed:
            failed.callback(_remove_empty, parent_fd, name, maker)
            fd = linux.openat2(parent_fd, name, _DIRECTORY, _MADE)
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
