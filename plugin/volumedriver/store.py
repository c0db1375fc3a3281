"""What the driver must remember over a crash: who holds which volume, what is about to be done, in which boot.

Definitions have a store of their own (`storage.definitions`), which the sidecar reads too.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

import structlog

from storage import state_files
from storage.state_files import is_damage, telling_damage
from volumedriver.engines import NOBODY, Engine
from volumedriver.errors import StateDamaged, StateUnavailable, reason
from volumedriver.volume import Shown

log = structlog.get_logger()

References = dict[str, dict[str, int]]
"""Volume name -> Mount ID -> count."""

# What each version adds to the one before. None is ever altered: hosts have them.
_MIGRATIONS = (
    """
    CREATE TABLE IF NOT EXISTS mount_references (
        volume TEXT NOT NULL,
        mount_id TEXT NOT NULL,
        count INTEGER NOT NULL CHECK (count > 0),
        PRIMARY KEY (volume, mount_id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS boot (id TEXT NOT NULL) STRICT;
    """,
    """
    ALTER TABLE mount_references ADD COLUMN engine_pid INTEGER;
    ALTER TABLE mount_references ADD COLUMN engine_started INTEGER;
    CREATE TABLE shown (
        volume TEXT PRIMARY KEY,
        device TEXT NOT NULL,
        root BLOB NOT NULL,
        source BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE intents (
        volume TEXT PRIMARY KEY,
        verb TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    "",  # the version stands there twice
)
_SET = """
INSERT INTO mount_references VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = excluded.count,
    engine_pid = coalesce(excluded.engine_pid, engine_pid),
    engine_started = coalesce(excluded.engine_started, engine_started)
"""
_ADD_APART = """
INSERT INTO mount_references SELECT volume, ?, count, engine_pid, engine_started FROM mount_references
    WHERE volume = ? AND mount_id = ?
    ON CONFLICT DO UPDATE SET count = count + excluded.count,
    engine_pid = excluded.engine_pid, engine_started = excluded.engine_started
"""
_LOCK_POLL_S = 0.05


class Verb(enum.StrEnum):
    """The verbs of which a start must know that they were begun. Of the others what is recorded tells it."""

    CREATE = "create"
    MOUNT = "mount"


@dataclass(frozen=True, slots=True)
class Intent:
    """What a verb is about to do to a volume; there is one a volume, as it holds the volume's lock.

    Attributes:
        detail: what a start needs to finish or undo it. Of Create the `options`, and the time as `created`; of
            Mount the `mount_id` and the `count` that it had.
    """

    volume: str
    verb: Verb
    detail: Mapping[str, Any]


class ReferenceStore:
    """References on disk, in the SQLite file `path`. Every change is there for the next process at once.

    Beside each reference there is the engine that asked for it; beside each volume that is mounted, what is shown
    there; and the intents of verbs that have not ended.

    Attributes:
        is_new: no driver has begun with this file; what references there were are lost.

    Raises:
        StateDamaged: the content of the file is not what was written.
        StateUnavailable: the file cannot be opened, or was written by a newer version.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._open()
        self.is_new = self.boot_id() is None

    def _open(self) -> None:
        with state_errors(self._path), telling_damage(), contextlib.ExitStack() as undo:
            self._connection = state_files.connected(self._path)
            undo.callback(self._connection.close)
            self._prepare()
            self._is_damaged = False
            self._check()
            self._inode = os.stat(self._path).st_ino
            undo.pop_all()

    def _prepare(self) -> None:
        if os.statvfs(os.path.dirname(self._path)).f_bfree == 0:
            # Its index is not a file then, which would need room: so the driver can start and be asked.
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        state_files.version_of(self._connection, self._path, len(_MIGRATIONS))
        self._connection.execute("PRAGMA journal_mode = WAL")
        # NORMAL: a killed process loses nothing. A power cut may, but ends every mount as well.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        with state_files.migrated(self._connection, self._path, _MIGRATIONS):
            pass

    def _check(self) -> None:
        """Look at the whole file, every row of it."""
        with contextlib.closing(state_files.connected(":memory:")) as pattern:
            state_files.check(self._connection, pattern, _MIGRATIONS)
        self.load()
        self.shown()
        self.intents()
        self.engines()

    def is_lost(self) -> bool:
        """Whether what is written goes nowhere: the file was found damaged since it was opened, or is gone."""
        try:
            return self._is_damaged or os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            return True

    def write_anew(
        self, boot_id: str, references: Mapping[str, Mapping[str, int]], shown: Mapping[str, Shown]
    ) -> str:
        """Make a new file of what the caller knows, and of the engines that asked.

        Returns:
            The name that the old one is kept under.
        """
        engines = self._engines
        with self._lock, state_errors(self._path):
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            kept_as = state_files.set_aside(self._path)
        self._open()
        self.begin_boot(boot_id)
        for volume, known in shown.items():
            self.set_shown(volume, known)
        for volume, counts in references.items():
            for mount_id, count in counts.items():
                self.set(volume, mount_id, count, engines.get((volume, mount_id)))
        return kept_as

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def set(self, volume: str, mount_id: str, count: int, engine: Engine | None = None) -> None:
        """Record that `mount_id` holds the volume `count` times; 0 forgets it. Settles an intent for the volume.

        `engine` asked for it; None leaves the one that is known.
        """
        if engine is not None:
            self._engines[volume, mount_id] = engine
        with self._transaction() as run:
            if count:
                run(_SET, (volume, mount_id, count, *(engine or (None, None))))
            else:
                run("DELETE FROM mount_references WHERE volume = ? AND mount_id = ?", (volume, mount_id))
            run("DELETE FROM intents WHERE volume = ?", (volume,))

    def set_apart(self, volume: str, mount_id: str, former: str) -> None:
        """Have `former` hold, besides what it does, what `mount_id` holds."""
        with self._transaction() as run:
            run(_ADD_APART, (former, volume, mount_id))
            run("DELETE FROM mount_references WHERE volume = ? AND mount_id = ?", (volume, mount_id))

    def drop(self, volume: str) -> None:
        """Forget every reference of `volume`. Settles an intent for it."""
        with self._transaction() as run:
            run("DELETE FROM mount_references WHERE volume = ?", (volume,))
            run("DELETE FROM intents WHERE volume = ?", (volume,))

    def load(self) -> References:
        """Every reference."""
        references: References = {}
        for volume, mount_id, count in self._run("SELECT volume, mount_id, count FROM mount_references"):
            references.setdefault(volume, {})[mount_id] = count
        return references

    def engine(self, volume: str, mount_id: str) -> Engine | None:
        """Who asked for a reference last; None where that is not known."""
        rows = self._run(
            "SELECT engine_pid, engine_started FROM mount_references WHERE volume = ? AND mount_id = ?",
            volume,
            mount_id,
        )
        return Engine(*rows[0]) if rows and rows[0][0] is not None else None

    def engines(self) -> dict[tuple[str, str], Engine | None]:
        """Who asked for each reference, by volume and Mount ID; None where that is not known."""
        rows = self._run("SELECT volume, mount_id, engine_pid, engine_started FROM mount_references")
        engines = {
            (volume, mount_id): Engine(pid, started) if pid is not None else None
            for volume, mount_id, pid, started in rows
        }
        self._engines = {**engines}
        return engines

    def set_shown(self, volume: str, shown: Shown) -> None:
        """Record what is mounted for `volume`."""
        values = (volume, shown.device, os.fsencode(shown.root), os.fsencode(shown.source))
        self._run("INSERT OR REPLACE INTO shown VALUES (?, ?, ?, ?)", *values)

    def shown(self) -> dict[str, Shown]:
        """What was mounted last for each volume, whether it still is or not."""
        rows = self._run("SELECT volume, device, root, source FROM shown")
        return {
            volume: Shown(device, os.fsdecode(root), os.fsdecode(source)) for volume, device, root, source in rows
        }

    def intend(self, intent: Intent) -> None:
        """Record what is about to be done, in the place of an earlier intent for the volume."""
        detail = json.dumps(intent.detail)
        self._run("INSERT OR REPLACE INTO intents VALUES (?, ?, ?)", intent.volume, intent.verb, detail)

    def settle(self, volume: str) -> None:
        """Forget the intent for `volume`: it is done, or undone."""
        self._run("DELETE FROM intents WHERE volume = ?", volume)

    def intents(self) -> list[Intent]:
        """What was begun and not settled, by volume. One that is none is dropped."""
        intents = []
        for volume, verb, detail in self._run("SELECT volume, verb, detail FROM intents ORDER BY volume"):
            try:
                intents.append(_intent(volume, verb, detail))
            except (ValueError, RecursionError) as error:
                log.warning("intent dropped", volume=volume, verb=verb, reason=f"it is damaged: {error}")
                self.settle(volume)
        return intents

    def boot_id(self) -> str | None:
        """The boot of the machine that the references belong to; None before the first."""
        rows = self._run("SELECT id FROM boot")
        return rows[0][0] if rows else None

    def begin_boot(self, boot_id: str, held: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start anew: what was mounted in an earlier boot, and who held it, is forgotten.

        Args:
            held: volumes that are held all the same, by a Mount ID that nobody will give back.
        """
        with self._transaction() as run:
            run("DELETE FROM mount_references")
            run("DELETE FROM shown")
            run("DELETE FROM intents WHERE verb = ?", (Verb.MOUNT,))
            run("DELETE FROM boot")
            run("INSERT INTO boot VALUES (?)", (boot_id,))
            for volume, mount_id in held.items():
                run(_SET, (volume, mount_id, 1, *NOBODY))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[..., object]]:
        with self._lock, self._errors(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection.execute

    def _run(self, statement: str, *values: str | int | bytes | None) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with state_errors(self._path), telling_damage():
                yield
        except StateDamaged:
            self._is_damaged = True
            raise


def _intent(volume: str, verb: str, detail: str) -> Intent:
    intent = Intent(volume, Verb(verb), json.loads(detail))
    match intent.verb, intent.detail:
        case Verb.CREATE, {"options": dict(options), "created": str(created)}:
            is_whole = all(isinstance(value, str) for value in options.values())
            datetime.fromisoformat(created)
        case Verb.MOUNT, {"mount_id": str(), "count": int(count)}:
            is_whole = count >= 0
        case _:
            is_whole = False
    if not is_whole:
        raise ValueError(f"{detail!r:.80} is not what a start needs to finish or undo it")
    return intent


@contextlib.contextmanager
def state_errors(path: str) -> Iterator[None]:
    """Tell the caller in a sentence that the state at `path` does not work."""
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise StateDamaged(f"the driver's state in {path} is damaged: {error}") from error
        raise StateUnavailable(f"the driver's state in {path} is not usable: {_told(error, path)}") from error
    except OSError as error:
        raise StateUnavailable(f"the driver's state in {path} is not usable: {reason(error)}") from error


def _told(error: sqlite3.Error, path: str) -> str:
    """What SQLite said; on a full or read-only disk with the reason, which it often does not know."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(os.path.dirname(path))
        if disk.f_flag & os.ST_RDONLY:
            return f"the file system of {os.path.dirname(path)} is read-only ({error})"
        if disk.f_bfree == 0:
            return f"the disk of {os.path.dirname(path)} is full ({error})"
    return str(error)


@contextlib.contextmanager
def sole_user(state: str, wait_s: float = 5) -> Iterator[None]:
    """Hold the lock of the directory `state`, for as long as this process works with it.

    Raises:
        StateUnavailable: another driver holds it and does not end within `wait_s`.
    """
    try:
        fd = os.open(os.path.join(state, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnavailable(f"the driver's state in {state} is not usable: {reason(error)}") from error
    with os.fdopen(fd, "r+", encoding="ascii") as file:
        _wait_for_lock(file.fileno(), state, time.monotonic() + wait_s)
        yield


def _wait_for_lock(fd: int, state: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StateUnavailable(
                    f"another brokervol driver works with {state}: two drivers need two directories (--root)"
                ) from None
        time.sleep(_LOCK_POLL_S)
