"""One lock a volume name, made when it is wanted and forgotten when it is not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from volumedriver.errors import VolumeBusy, quoted


@dataclass(slots=True)
class _Lock:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class NamedLocks:
    """Mutual exclusion by name; names do not hinder each other.

    Args:
        timeout_s: how long to wait for a name. Shorter than the engine waits for an answer, so that a volume
            whose file system hangs costs one thread and not one for every retry.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._registry = threading.Lock()
        self._locks: dict[str, _Lock] = {}

    @contextlib.contextmanager
    def held(self, name: str, timeout_s: float | None = None) -> Iterator[None]:
        """Hold the lock of `name`.

        Raises:
            VolumeBusy: somebody else holds it for longer than `timeout_s`, or else the usual time-out.
        """
        entry = self._enter(name)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            if not entry.lock.acquire(timeout=timeout_s):
                raise VolumeBusy(
                    f"volume {quoted(name)} is busy: an earlier call for it has not ended within {timeout_s:g} s"
                )
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            self._leave(name, entry)

    def _enter(self, name: str) -> _Lock:
        with self._registry:
            entry = self._locks.setdefault(name, _Lock())
            entry.users += 1
            return entry

    def _leave(self, name: str, entry: _Lock) -> None:
        with self._registry:
            entry.users -= 1
            if not entry.users:
                del self._locks[name]
