"""Several items at a time: order, bounds, and what is held until its thread has ended."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import pytest

from storage.brokers._parallel import Job, in_order, one_ahead
from storage.exceptions import MissingFile


@dataclass
class Recorded(Job):
    """A job that says what is done with it."""

    number: int
    log: list[str]
    working: Callable[[], None] = lambda: None
    is_working: bool = field(default=False)

    def work(self) -> None:
        self.is_working = True
        try:
            self.working()
        finally:
            self.is_working = False

    def finish(self) -> None:
        self.log.append(f"finish {self.number}")

    def close(self) -> None:
        assert not self.is_working, "closed under its thread"
        self.log.append(f"close {self.number}")


@pytest.mark.parametrize("count", [0, 1, 50])
def test_jobs_finish_in_order_and_each_is_closed(count: int) -> None:
    log: list[str] = []
    assert in_order(range(count), lambda number: Recorded(number, log), 4) is None
    assert log == [line for number in range(count) for line in (f"finish {number}", f"close {number}")]


@pytest.mark.parametrize("count", [1, 50])
def test_the_first_failure_is_returned_and_nothing_is_begun_after_it(count: int) -> None:
    log: list[str] = []

    def begin(number: int) -> Recorded:
        return Recorded(number, log, failing if number == count // 2 else lambda: None)

    def failing() -> None:
        raise MissingFile("half-way")

    error = in_order(range(count), begin, 2)
    assert isinstance(error, MissingFile)
    assert f"finish {count // 2}" not in log
    closed = [line for line in log if line.startswith("close")]
    assert len(closed) == len(set(closed)) <= count // 2 + 5


def test_an_interrupt_closes_nothing_under_its_thread() -> None:
    """A descriptor that a thread still writes to may be another file's as soon as it is closed."""
    log: list[str] = []
    is_released = threading.Event()

    def interrupt_then_release() -> None:
        while not log:  # until the caller waits for jobs, having begun as many as it may
            threading.Event().wait(0.01)
        _thread.interrupt_main()
        threading.Event().wait(0.1)
        is_released.set()

    def wait() -> None:
        is_released.wait(10)

    def begin(number: int) -> Recorded:
        if number == 7:
            log.append("all begun")
        return Recorded(number, log, wait)

    releasing = threading.Thread(target=interrupt_then_release)
    releasing.start()
    with pytest.raises(KeyboardInterrupt):
        in_order(range(100), begin, 4)
    releasing.join()
    assert sorted(log[1:]) == [f"close {number}" for number in range(8)]


def test_items_are_made_one_ahead_and_the_source_is_closed() -> None:
    log: list[str] = []

    def source() -> Generator[list[int], None, None]:
        try:
            for number in range(5):
                log.append(f"made {number}")
                yield [number]
        finally:
            log.append("closed")

    ahead = one_ahead(source())
    assert next(ahead) == [0]
    ahead.close()
    assert log[-1] == "closed"
    assert list(one_ahead(source())) == [[0], [1], [2], [3], [4]]
