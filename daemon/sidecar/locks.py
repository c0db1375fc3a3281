"""Names that one request has for itself at a time: the paths that it changes, or its idempotency key."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager

from storage.exceptions import StorageError


class Locks:
    """Names of one kind. Safe for several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: set[Hashable] = set()

    @contextmanager
    def held(self, names: Collection[Hashable], refusal: StorageError, *, wait_s: float) -> Iterator[None]:
        """Hold these names for the block, all or none.

        Raises:
            refusal: another request has one of them, and does not give it back within `wait_s`.
        """
        wanted = {*names}
        deadline = time.monotonic() + wait_s
        with self._changed:
            while not self._held.isdisjoint(wanted):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise refusal
            self._held |= wanted
        try:
            yield
        finally:
            with self._changed:
                self._held -= wanted
                self._changed.notify_all()
