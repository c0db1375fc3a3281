"""Log lines that strangers cause, as often as they like: one a second of each kind, and how many were left out."""

from __future__ import annotations

import threading
import time

import structlog

log = structlog.get_logger()

_INTERVAL_S = 1.0


class Seldom:
    """Warns of each event at most once a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, event: str, **facts: object) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._next.get(event, 0):
                self._left_out[event] = self._left_out.get(event, 0) + 1
                return
            self._next[event] = now + _INTERVAL_S
            left_out = self._left_out.pop(event, 0)
        if left_out:
            facts["left_out"] = left_out
        log.warning(event, **facts)


seldom = Seldom()
