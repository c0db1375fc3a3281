"""Work for servers that may be dead: a lane for each, so that no other waits; and tried again ever less often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable

import structlog

from volumedriver.errors import DriverError

log = structlog.get_logger()


class Lanes:
    """A thread for each lane that has work. Used from one thread; what is to be done is done by others."""

    def __init__(self) -> None:
        self._threads: dict[Hashable, threading.Thread] = {}

    def start(self, lane: Hashable, work: Callable[[], None]) -> None:
        """Do `work`, unless that lane has not ended its last: the next pass brings it again."""
        thread = self._threads.get(lane)
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=_guarded, args=(work,), name=f"lane {lane}", daemon=True)
            self._threads[lane] = thread
            thread.start()

    def wait(self, timeout_s: float) -> None:
        """Wait until all have ended, but no longer."""
        deadline = time.monotonic() + timeout_s
        for lane, thread in [*self._threads.items()]:
            thread.join(max(0.0, deadline - time.monotonic()))
            if not thread.is_alive():
                self._threads.pop(lane, None)


def _guarded(work: Callable[[], None]) -> None:
    try:
        work()
    except (DriverError, OSError) as error:
        log.warning("reconciling failed", reason=str(error))
    except Exception:
        log.exception("reconciling failed")


class BackOff:
    """What failed is put off: for `first_s`, then twice as long each time, up to `longest_s`."""

    def __init__(self, clock: Callable[[], float], first_s: float, longest_s: float) -> None:
        self._clock = clock
        self._first_s = first_s
        self._longest_s = longest_s
        self._failed: dict[str, tuple[int, float]] = {}  # how often, and until when it is put off

    def due(self, names: Collection[str]) -> list[str]:
        """Those of `names` that may be tried, what failed least first; all that is not among them is forgotten."""
        failed = self._failed = {name: known for name, known in self._failed.items() if name in names}
        now = self._clock()
        found = [name for name in names if failed.get(name, (0, now))[1] <= now]
        return sorted(found, key=lambda name: failed.get(name, (0, now))[0])

    def failed(self, name: str) -> float:
        """Put it off; returns for how many seconds."""
        times = self._failed.get(name, (0, 0.0))[0]
        delay_s = min(self._first_s * (1 << min(times, 32)), self._longest_s)
        self._failed[name] = times + 1, self._clock() + delay_s
        return delay_s

    def succeeded(self, name: str) -> None:
        self._failed.pop(name, None)
