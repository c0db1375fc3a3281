"""The items of a call on several threads: in groups, in order, with a bound on how many are under way."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any, Generic, TypeVar

from storage.exceptions import BackendUnavailable

Item = TypeVar("Item")
J = TypeVar("J", bound="Job")


class Job:
    """One item's work.

    Attributes:
        error: why it failed, if it did.
    """

    error: BaseException | None = None


class Group(ABC):
    """Some items of a call that take each step together.

    Attributes:
        number: of the group in its call, in order.
        is_cut: whether `begin` found an item that cannot be done, and left it and those after it out.
    """

    number = 0
    is_cut = False

    @abstractmethod
    def begin(self) -> None:
        """What comes first, on the calling thread; not called once an item of an earlier group has failed."""

    @abstractmethod
    def work(self, crew: Crew) -> None:
        """What may wait for others, on another thread, most of it by the crew's."""

    @abstractmethod
    def end(self) -> BaseException | None:
        """What comes last, on the calling thread, also after an interrupt; what failed first, if anything did.

        Called once for each group that `begin` was called for, however far that came.
        """


@dataclass
class _UnderWay:
    group: Group
    working: Future[None] | None = None
    lock: Lock = field(default_factory=Lock)
    is_begun: bool = False


class Crew:
    """Threads for one call; as a context, at whose end they have ended.

    Args:
        workers: how many items may be worked on at a time.
        groups: how many groups may be under way at a time.
        is_alone: whether there is one item: then all is done by the calling thread.
    """

    def __init__(self, workers: int, groups: int, *, is_alone: bool = False) -> None:
        self._workers, self._groups = workers, groups
        self._pool: Executor = _Here() if is_alone else ThreadPoolExecutor(workers)
        self._leaders: Executor = _Here() if is_alone else ThreadPoolExecutor(groups)
        self._failed = math.inf  # the first group of which an item has

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._leaders.shutdown()
        self._pool.shutdown()

    def run(self, groups: Iterable[Group]) -> BaseException | None:
        """Do the groups. Once an item has failed no further one is begun; those under way are completed.

        Returns:
            The error of the first item, in order, that failed.
        """
        under_way: deque[_UnderWay] = deque()
        errors: list[BaseException | None] = []
        refused: Exception | None = None
        try:
            for number, group in enumerate(groups):
                group.number = number
                under_way.append(_UnderWay(group))
                try:
                    group.begin()
                except Exception as error:
                    refused = error
                    break
                under_way[-1].working = self._led(under_way[-1])
                if len(under_way) == self._groups:
                    errors.append(self._end(under_way))
                if self._failed < math.inf or group.is_cut or any(errors):
                    break
            errors += self._end_all(under_way)
        except BaseException:
            self._failed = -1
            self._end_all(under_way)
            raise
        return next(filter(None, [*errors, refused]), None)

    def _led(self, entry: _UnderWay) -> Future[None]:
        try:
            return self._leaders.submit(self._lead, entry)
        except RuntimeError:  # no thread can be started: by the calling one then
            return _Here().submit(self._lead, entry)

    def _lead(self, entry: _UnderWay) -> None:
        with entry.lock:
            if not entry.is_begun and self.goes_on(entry.group):
                entry.is_begun = True
                entry.group.work(self)

    def _end(self, under_way: deque[_UnderWay]) -> BaseException | None:
        entry = under_way[0]
        failure = entry.working.exception() if entry.working else None
        with entry.lock:  # interrupted as it was handed over, it may be worked on, or be about to
            entry.is_begun = True  # by nobody any more
        under_way.popleft()  # not before: interrupted until here, its threads may be at it
        try:
            return entry.group.end() or failure
        except Exception as error:
            return error

    def _end_all(self, under_way: deque[_UnderWay]) -> list[BaseException | None]:
        return [self._end(under_way) for _ in range(len(under_way))]

    def each(
        self, group: Group, step: Callable[[J], object], jobs: Sequence[J], *, whatever: bool = False
    ) -> list[J]:
        """Take a step with the jobs of a group, several at a time.

        Once one has failed, no further one is begun: those that were begun come before those that were not. Where
        no more threads can be had, those that there are do all, the calling one if need be.

        Args:
            whatever: go on after a failure: for what is half done.

        Returns:
            The jobs that it was taken with.
        """
        work = _Work(step, jobs)

        def some() -> None:
            while job := work.next(lambda: not whatever and (work.has_failed or not self.goes_on(group))):
                if not work.take(job):
                    self._failed = min(self._failed, group.number)

        try:
            begun: list[Future[None]] = []
            with contextlib.suppress(RuntimeError):  # no thread can be started: those that there are do all
                while len(begun) < min(self._workers, len(jobs)):
                    begun.append(self._pool.submit(some))
            if not begun:
                some()
            wait(begun)
        finally:
            work.end()  # what could not be begun is in the pool's queue all the same
        return [job for job in jobs if job in work.taken]

    def goes_on(self, group: Group) -> bool:
        """Whether something further may be begun in a group: no failure of an earlier one, no interrupt."""
        return self._failed >= group.number


class _Work(Generic[J]):
    """A step with some jobs, by whatever threads ask for one.

    Attributes:
        taken: the jobs that it was taken with.
    """

    def __init__(self, step: Callable[[J], object], jobs: Iterable[J]) -> None:
        self.taken: set[J] = set()
        self.has_failed = False
        self._step, self._remaining = step, iter(jobs)
        self._changed = Condition()
        self._active, self._is_over = 0, False

    def next(self, is_enough: Callable[[], bool]) -> J | None:
        """A job for the calling thread, which must `take` it."""
        with self._changed:
            job = None if self._is_over or is_enough() else next(self._remaining, None)
            self._active += job is not None
            return job

    def take(self, job: J) -> bool:
        """Take the step; whether it succeeded."""
        try:
            self._step(job)
            self.taken.add(job)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Rust panics among them
            job.error, self.has_failed = error, True
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()
        return job in self.taken

    def end(self) -> None:
        """Wait for the threads that are at a job; no other is begun, by whoever asks later."""
        with self._changed:
            self._is_over = True
            self._changed.wait_for(lambda: not self._active)


def one_ahead(source: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The items of `source`, each made by another thread while the one before is worked on."""
    # In this order: the thread must have ended when the source is closed.
    with contextlib.closing(source), ThreadPoolExecutor(1) as pool:
        try:
            coming = pool.submit(next, source, None)
        except RuntimeError as error:
            raise BackendUnavailable(f"no thread can be started: {error}") from error
        while (item := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield item


class _Here(Executor):
    """Works on the calling thread: for one item another would only cost."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # the future's to raise
            done.set_exception(error)
        return done
