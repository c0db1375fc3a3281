"""Several items at a time, in order, with a bound on how many are under way."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


class Job:
    """One item's work: begun by its constructor and ended by `finish`, both on the calling thread.

    A step that a job does not have does nothing.
    """

    def work(self) -> None:
        """What may wait for others: done by another thread."""

    def finish(self) -> None:
        """What comes after, in the order of the items; not called when `work` failed."""

    def close(self) -> None:
        """Give back what the job holds; called once, whatever happened."""


def in_order(items: Iterable[Item], begin: Callable[[Item], Job], workers: int) -> BaseException | None:
    """Do a job for each item, at most `workers` at a time.

    Once a job has failed no further one is begun; those under way are completed.

    Returns:
        The error of the first job, in the order of the items, that failed.
    """
    items = list(items)
    first: BaseException | None = None
    pending: deque[tuple[Job, Future[None]]] = deque()

    def settle() -> None:
        nonlocal first
        job, done = pending[0]
        error = done.exception()  # interrupted here, the job stays pending: its thread still uses what it holds
        pending.popleft()
        try:
            if error is None:
                job.finish()
        except Exception as failure:
            error = failure
        finally:
            job.close()
        first = first or error

    refused: Exception | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(_close_all, pending)  # after the threads have ended
        pool: Executor = stack.enter_context(_Here() if len(items) == 1 else ThreadPoolExecutor(workers))
        stack.callback(pool.shutdown, cancel_futures=True)  # an interrupt need not wait for what has not begun
        for item in items:
            if len(pending) == 2 * workers:
                settle()
            if first is not None:
                break
            try:
                job = begin(item)
            except Exception as error:
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
    # In this order: the thread must have ended when the source is closed.
    with contextlib.closing(source), ThreadPoolExecutor(1) as pool:
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
