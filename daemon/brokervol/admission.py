"""Who is served when: so many requests at once, of each caller its part, the rest in short queues, in turn."""

from __future__ import annotations

import enum
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

import structlog

from brokervol.seldom import seldom

log = structlog.get_logger()

T = TypeVar("T")

# Not 8 MiB: stacks of that size may be backed by huge pages, 2 MiB of memory each.
_STACK_BYTES = 1024 * 1024


class Verdict(enum.Enum):
    STARTS = "starts"
    WAITS = "waits"
    REFUSED = "refused"


class Admission(Generic[T]):
    """Which requests run and which wait. Not for several threads.

    No caller gets more than half of what the others leave free, so that the first few cannot take everything.

    Args:
        most: how many run at once.
        most_per_caller: how many of one caller; None for no such limit. The caller None is never limited.
        most_waiting: how many of one caller wait.
    """

    def __init__(self, most: int, most_per_caller: int | None, most_waiting: int) -> None:
        self._most = most
        self._most_per_caller = most_per_caller
        self._most_waiting = most_waiting
        self._running: Counter[Hashable] = Counter()
        self._total = 0
        self._waiting: dict[Hashable, deque[T]] = {}  # in the order in which the callers have their turn

    @property
    def running(self) -> int:
        """How many run. For any thread."""
        return self._total

    @property
    def waiting(self) -> int:
        """How many wait. For any thread, as an estimate."""
        return sum(map(len, [*self._waiting.values()]))

    def enter(self, caller: Hashable, request: T) -> Verdict:
        """A request has come. One that starts or waits must `leave` or `withdraw`."""
        if caller not in self._waiting and self._may_start(caller):
            self._start(caller)
            return Verdict.STARTS
        if len(self._waiting.get(caller, ())) >= self._most_waiting:
            return Verdict.REFUSED
        self._waiting.setdefault(caller, deque()).append(request)
        return Verdict.WAITS

    def leave(self, caller: Hashable) -> list[T]:
        """One of the caller's requests has ended; returns those that start now."""
        self._total -= 1
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        return list(self._starting())

    def _starting(self) -> Iterator[T]:
        while self._total < self._most:
            turn = [caller for caller in self._waiting if self._may_start(caller)][:1]
            if not turn:
                return
            (caller,) = turn
            waiting = self._waiting.pop(caller)
            self._start(caller)
            request = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting  # behind all others
            yield request

    def withdraw(self, caller: Hashable, request: T) -> None:
        """A request waits no longer."""
        waiting = self._waiting[caller]
        waiting.remove(request)
        if not waiting:
            del self._waiting[caller]

    def has_room(self, caller: Hashable) -> bool:
        """Whether nobody waits, and half of what the caller may have is free. For any thread, as an estimate."""
        most = self._most if self._most_per_caller is None else min(self._most_per_caller, self._most // 2)
        own = self._total if caller is None else self._running[caller]
        return not self._waiting and 2 * self._total <= self._most and 2 * own <= most

    def _start(self, caller: Hashable) -> None:
        self._total += 1
        self._running[caller] += 1

    def _may_start(self, caller: Hashable) -> bool:
        free = self._most - self._total
        if caller is None or self._most_per_caller is None:
            return free > 0
        own = self._running[caller]
        return free > 0 and own < min(self._most_per_caller, max(1, (free + own) // 2))


class Pool(Generic[T]):
    """Threads that do `work` on what is submitted, never more than were needed at once; they end with the process.

    Unlike those of `concurrent.futures`, a thread that is stuck does not keep the process from ending. Only one
    thread may submit and release.
    """

    def __init__(self, work: Callable[[T], None]) -> None:
        self._work = work
        self._threads = 0
        self._busy = 0
        self._submitted: queue.SimpleQueue[T] = queue.SimpleQueue()

    def submit(self, item: T) -> None:
        """Have `item` worked on. To be released when that is done.

        Raises:
            RuntimeError: the system gives no thread, and there is none at all.
        """
        if self._busy >= self._threads:
            self._start_thread()
        self._busy += 1
        self._submitted.put(item)

    def release(self) -> None:
        """One thread is done, or as good as done, with what was submitted."""
        self._busy -= 1

    def _start_thread(self) -> None:
        stack_bytes = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=self._run, name=f"request-{self._threads}", daemon=True).start()
            self._threads += 1
        except RuntimeError:
            if not self._threads:
                raise
            seldom.warning("no more threads can be started", threads=self._threads)
        finally:
            threading.stack_size(stack_bytes)

    def _run(self) -> None:
        while True:
            item = self._submitted.get()
            try:
                self._work(item)
            except Exception:
                log.exception("a request ended unexpectedly")
