"""Opening the state, and what is done where a file of it is lost or damaged.

A damaged file is set aside under a name with the time, never removed. Definitions come again from their backup;
references from the kernel, when `recovery` looks at the mounts. Definitions that cannot be rebuilt are left as
they are and refused: an empty List would make the engine forget every volume.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime

import structlog

from storage.definitions import DefinitionStore, backup_path, from_json, utc_now
from volumedriver.errors import StateDamaged
from volumedriver.store import ReferenceStore, state_errors

log = structlog.get_logger()


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


def _checked(path: str) -> DefinitionStore:
    with contextlib.ExitStack() as undo:
        try:
            with state_errors(path):
                store = DefinitionStore(path)
                undo.callback(store.close)
                store.check()
        except ValueError as error:  # which SQLite does not mind
            raise StateDamaged(f"the driver's state in {path} is damaged: {error}") from error
        undo.pop_all()
        return store


def _agree(store: DefinitionStore, path: str) -> None:
    with state_errors(path):
        rebuilt = [definition.name for definition in store.load()] if store.is_new else []
        rebuilt += store.agree_with_backup()
    if rebuilt:
        log.error("definitions rebuilt", path=path, source=backup_path(path), volumes=len(rebuilt))


def _check_backup(path: str, problem: str) -> None:
    backup = backup_path(path)
    try:
        with open(backup, encoding="utf-8") as file:
            from_json(file.read())
    except (OSError, ValueError) as error:
        raise StateDamaged(
            f"{problem}; and the backup {backup} is not usable: {error}. Move both files away, and bring the"
            " volumes back by `brokervol volumes import` from an export, or start with none"
        ) from error


def _set_aside(path: str, problem: str) -> None:
    """Rename the file, and what SQLite keeps beside it."""
    name = f"{path}.damaged-{_stamp(utc_now())}"
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, name + suffix)
    log.error("state set aside", path=path, kept_as=name, reason=problem)


def _stamp(time: datetime) -> str:
    return time.strftime("%Y%m%dT%H%M%S.%fZ")
