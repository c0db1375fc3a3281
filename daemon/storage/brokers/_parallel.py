"""Several items at a time, in order, with a bound on how many are under way."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from storage.exceptions import StorageError

Item = TypeVar("Item")


class Job(Protocol):
    """One item's work: begun by its constructor and ended by `finish`, both on the calling thread."""

    def work(self) -> None:
        """What may wait for others: done by another thread."""

    def finish(self) -> None:
        """What comes after, in the order of the items; not called when `work` failed."""

    def close(self) -> None:
        """Give back what the job holds; called once, whatever happened."""


def in_order(items: Sequence[Item], begin: Callable[[Item], Job], workers: int) -> StorageError | None:
    """Do a job for each item, at most `workers` at a time.

    Once a job has failed no further one is begun; those under way are completed.

    Returns:
        The error of the first job, in the order of the items, that failed.
    """
    first: StorageError | None = None
    pending: deque[tuple[Job, Future[None]]] = deque()

    def settle() -> None:
        nonlocal first
        job, done = pending.popleft()
        try:
            done.result()
            job.finish()
        except StorageError as error:
            first = first or error
        finally:
            job.close()

    refused: StorageError | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(_close_all, pending)  # after the threads have ended
        pool: Executor = stack.enter_context(_Here() if len(items) == 1 else ThreadPoolExecutor(workers))
        for item in items:
            if len(pending) == 2 * workers:
                settle()
            if first is not None:
                break
            try:
                job = begin(item)
            except StorageError as error:
                refused = error
                break
            pending.append((job, pool.submit(job.work)))
        while pending:
            settle()
    return first or refused


def _close_all(pending: Iterable[tuple[Job, object]]) -> None:
    for job, _ in pending:
        job.close()


def one_ahead(source: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The items of `source`, each made by another thread while the one before is worked on."""
    with ThreadPoolExecutor(1) as pool, contextlib.closing(source):
        coming = pool.submit(next, source, None)
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
