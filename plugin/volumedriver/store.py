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
from types import MappingProxyType
from typing import Any

from storage.definitions import BackupDamaged
from volumedriver.engines import NOBODY, Engine
from volumedriver.errors import StateDamaged, StateUnavailable, reason
from volumedriver.volume import Shown

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
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
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
        with state_errors(path):
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise StateDamaged(f"the driver's state in {self._path} is damaged: {found}")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise StateUnavailable(
                f"{self._path} has version {version};"
                f" this brokervol knows versions up to {len(_MIGRATIONS)}: install the newer one again"
            )
        self._connection.execute("PRAGMA journal_mode = WAL")
        # NORMAL: a killed process loses nothing. A power cut may, but ends every mount as well.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        for number, migration in enumerate(_MIGRATIONS[version:], version + 1):
            self._connection.executescript(f"BEGIN; {migration} PRAGMA user_version = {number}; COMMIT;")
        self.is_new = not self._connection.execute("SELECT 1 FROM boot").fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def set(self, volume: str, mount_id: str, count: int, engine: Engine | None = None) -> None:
        """Record that `mount_id` holds the volume `count` times; 0 forgets it. Settles an intent for the volume.

        `engine` asked for it; None leaves the one that is known.
        """
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
        return {
            (volume, mount_id): Engine(pid, started) if pid is not None else None
            for volume, mount_id, pid, started in rows
        }

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
        """What was begun and not settled, by volume."""
        rows = self._run("SELECT volume, verb, detail FROM intents ORDER BY volume")
        return [Intent(volume, Verb(verb), json.loads(detail)) for volume, verb, detail in rows]

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
        with self._lock, state_errors(self._path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection.execute

    def _run(self, statement: str, *values: str | int | bytes | None) -> list[tuple[Any, ...]]:
        with self._lock, state_errors(self._path):
            return self._connection.execute(statement, values).fetchall()


@contextlib.contextmanager
def state_errors(path: str) -> Iterator[None]:
    """Tell the caller in a sentence that the state at `path` does not work."""
    try:
        yield
    except sqlite3.Error as error:
        if isinstance(error, BackupDamaged) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            raise StateDamaged(f"the driver's state in {path} is damaged: {error}") from error
        raise StateUnavailable(f"the driver's state in {path} is not usable: {error}") from error
    except OSError as error:
        raise StateUnavailable(f"the driver's state in {path} is not usable: {reason(error)}") from error


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
