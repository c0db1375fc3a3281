"""Several items at a time: order, bounds, and what is held until its thread has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import pytest

from storage.brokers._parallel import Crew, Group, Job, one_ahead
from storage.exceptions import BackendUnavailable, MissingFile


@dataclass(eq=False)
class Numbered(Job):
    number: int


@dataclass
class Some(Group):
    """A group that says what is done with it; `working` is what its items wait for."""

    numbers: Sequence[int]
    log: list[str]
    working: Callable[[int], None] = lambda _: None
    is_working: bool = field(default=False)

    def begin(self) -> None:
        self.jobs = [Numbered(number) for number in self.numbers]
        self.log.append(f"begin {self.numbers[0]}")

    def work(self, crew: Crew) -> None:
        self.is_working = True
        self.taken = crew.each(self, lambda job: self.working(job.number), self.jobs)
        self.is_working = False

    def end(self) -> BaseException | None:
        assert not self.is_working, "ended under its threads"
        self.log.append(f"end {self.numbers[0]}")
        return next((job.error for job in self.jobs if job.error), None)


def groups_of(
    count: int, log: list[str], working: Callable[[int], None] = lambda _: None, size: int = 5
) -> list[Some]:
    return [Some(range(start, min(start + size, count)), log, working) for start in range(0, count, size)]


@pytest.mark.parametrize("count", [0, 1, 50])
def test_groups_end_in_order_and_each_item_is_worked_on(count: int) -> None:
    log: list[str] = []
    worked: list[int] = []
    groups = groups_of(count, log, worked.append)
    with Crew(4, 2, is_alone=count == 1) as crew:
        assert crew.run(groups) is None
    assert sorted(worked) == list(range(count))
    assert [line for line in log if line.startswith("end")] == [f"end {start}" for start in range(0, count, 5)]
    assert [job.number for group in groups for job in group.taken] == list(range(count))


@pytest.mark.parametrize("count", [1, 50])
def test_the_first_failure_is_returned_and_little_is_begun_after_it(count: int) -> None:
    log: list[str] = []
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number >= count // 2:
            raise MissingFile(f"number {number}")

    with Crew(2, 1, is_alone=count == 1) as crew:
        error = crew.run(groups_of(count, log, work))
    assert str(error) == f"number {count // 2}"
    assert sorted(begun) == list(range(len(begun))), "what was begun comes before what was not"
    assert len(begun) <= count // 2 + 2
    assert [line.replace("begin", "end") for line in log if "begin" in line] == [
        line for line in log if "end" in line
    ]


def test_a_group_that_cannot_begin_ends_with_those_before_it() -> None:
    log: list[str] = []

    class Refused(Some):
        def begin(self) -> None:
            super().begin()
            raise BackendUnavailable("the catalog")

        def end(self) -> BaseException | None:
            return super().end()

    groups = [*groups_of(10, log), Refused([10], log), *groups_of(5, log)]
    with Crew(2, 2) as crew:
        assert isinstance(crew.run(groups), BackendUnavailable)
    assert log == ["begin 0", "begin 5", "end 0", "begin 10", "end 5", "end 10"]


@pytest.mark.parametrize("threads", range(5))
def test_where_no_thread_can_be_started_those_that_there_are_do_all(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """As with a limit on processes. What was to be begun lies in the pool's queue, for whichever thread comes."""
    start, started = threading.Thread.start, list[threading.Thread]()

    def limited(thread: threading.Thread) -> None:
        if len(started) >= threads:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    log: list[str] = []
    worked: list[int] = []
    groups = groups_of(50, log, worked.append)
    with Crew(4, 2) as crew:
        assert crew.run(groups) is None
    assert sorted(worked) == list(range(50))
    assert [line for line in log if line.startswith("end")] == [f"end {start}" for start in range(0, 50, 5)]


def test_an_interrupt_ends_no_group_under_its_threads() -> None:
    """A descriptor that a thread still writes to may be another file's as soon as it is closed."""
    log: list[str] = []
    begun: list[int] = []
    is_released = threading.Event()
    crew = Crew(4, 2)

    def interrupt_then_release() -> None:
        while len(log) < 2 or len(begun) < 4:  # until the caller waits, having begun as many as it may
            threading.Event().wait(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while crew.goes_on(groups[0]):  # until the caller has noticed
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)
        is_released.set()

    def wait(number: int) -> None:
        begun.append(number)
        is_released.wait(10)

    groups = groups_of(100, log, wait)
    releasing = threading.Thread(target=interrupt_then_release)
    releasing.start()
    with pytest.raises(KeyboardInterrupt), crew:
        crew.run(groups)
    releasing.join()
    assert log == ["begin 0", "begin 5", "end 0", "end 5"]
    assert len(begun) == 4


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
