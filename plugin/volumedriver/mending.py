"""Opening the state, and what is done where a file of it is lost or damaged.

A damaged file is set aside under a name with the time, never removed. Definitions come again from their backup;
references from the kernel, when `recovery` looks at the mounts. Definitions that cannot be rebuilt are left as
they are and refused: an empty List would make the engine forget every volume.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import structlog

from storage import state_files
from storage.definitions import DefinitionStore, backup_path, read_backup
from volumedriver.errors import StateDamaged, reason
from volumedriver.store import ReferenceStore, state_errors

log = structlog.get_logger()

_RESERVE_BYTES = 256 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def opened_definitions(path: str) -> Iterator[DefinitionStore]:
    """The definitions in the file `path`, rebuilt if need be; closed at the end.

    Raises:
        StateDamaged: they are damaged or lost, and so is their backup.
        StateUnavailable: they cannot be read or written, or are of a newer version.
    """
    try:
        store = _checked(path)
    except StateDamaged as error:
        _check_backup(path, str(error))
        _set_aside(path, str(error))
        store = _checked(path)
    with contextlib.closing(store):
        _agree(store, path)
        yield store


def opened_references(path: str) -> ReferenceStore:
    """The references in the file `path`, an empty and new one if that is damaged.

    Raises:
        StateUnavailable: they cannot be read or written, or are of a newer version.
    """
    try:
        return ReferenceStore(path)
    except StateDamaged as error:
        _set_aside(path, str(error))
        return ReferenceStore(path)


def make_room(state: str) -> None:
    """Give up the room that `keep_room` has kept in the directory `state`, if the disk is full: starts write.

    Raises:
        StateUnavailable: the directory cannot be used.
    """
    with state_errors(state):
        disk, reserve = os.statvfs(state), _reserve(state)
        if disk.f_bfree * disk.f_frsize < _RESERVE_BYTES and os.path.exists(reserve):
            os.unlink(reserve)
            log.error("disk is full", path=state, reason="the driver starts in the room that it has kept for that")


def keep_room(state: str) -> None:
    """Take up room in the directory `state` for the next start, if there is any."""
    try:
        _take_up(_reserve(state))
    except OSError as error:
        log.warning(
            "disk is full", path=state, reason=f"there is no room to keep for another start: {reason(error)}"
        )


def _reserve(state: str) -> str:
    return os.path.join(state, "reserve")


def _take_up(reserve: str) -> None:
    """Written, not only made as large: a file with holes takes no room."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(reserve).st_size == _RESERVE_BYTES:
            return
    try:
        with open(reserve, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(os.urandom(_RESERVE_BYTES))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(reserve)
        raise


def _checked(path: str) -> DefinitionStore:
    with contextlib.ExitStack() as undo, state_errors(path):
        store = DefinitionStore(path)
        undo.callback(store.close)
        store.check()
        undo.pop_all()
        return store


def _agree(store: DefinitionStore, path: str) -> None:
    backup = backup_path(path)
    with state_errors(path):
        rebuilt = [definition.name for definition in store.load()] if store.is_new else []
        try:
            added, kept_as = store.agree_with_backup()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            log.warning("the backup of definitions is not written", path=backup, reason=reason(error))
            added, kept_as = [], None
    if kept_as:
        log.error("the backup of definitions said something else", path=backup, kept_as=kept_as)
    if rebuilt or added:
        log.error("definitions rebuilt", path=path, source=backup, volumes=len(rebuilt) + len(added))


def _check_backup(path: str, problem: str) -> None:
    try:
        read_backup(path)
    except (OSError, ValueError) as error:
        raise StateDamaged(
            f"{problem}; and the backup {backup_path(path)} is not usable: {error}. Move {os.path.dirname(path)}"
            " away, and bring the volumes back by `brokervol volumes import` from an export, or start with none"
        ) from error


def _set_aside(path: str, problem: str) -> None:
    log.error("state set aside", path=path, kept_as=state_files.set_aside(path), reason=problem)
