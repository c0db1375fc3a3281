"""What the sidecar counts of its requests, in constant memory; `exposition` writes it down for Prometheus."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from sidecar.errors import STATUS_OF_CODE

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

# From an answer out of memory to a batch of many large files.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

OTHER = "other"
"""The call of requests that are none of the API's."""

_CALL = "brokervol.call"
_MOVING = frozenset(("upload", "download", "getContent", "putContent"))

Told = Mapping[str, str | float | None]


class Call:
    """One request.

    Attributes:
        request_id: by which log, audit log, answer and problem name it.
        operation: what is asked, once that is known.
        backend: the type of the broker that it comes to, if it comes to one.
        code: of the problem that it ended with; None if there was none.
    """

    __slots__ = ("backend", "code", "operation", "request_id", "status")

    def __init__(self) -> None:
        self.request_id = os.urandom(8).hex()
        self.operation = OTHER
        self.backend = ""
        self.code: str | None = None
        self.status = ""

    @property
    def instance(self) -> str:
        """How a problem document names the request."""
        return f"urn:brokervol:request:{self.request_id}"


def call_of(environ: Mapping[str, Any]) -> Call:
    """The request with this WSGI environment."""
    found: Call = environ[_CALL]
    return found


class Duration:
    """A histogram: how many took how long."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class Counts(NamedTuple):
    """What was counted until a moment.

    Attributes:
        calls: by operation and HTTP status.
        durations: by operation; counts of each bucket of BUCKETS_S, then of what took longer; and their sum.
        errors: requests that ended with a problem, by its code.
        files: that were worked on, by operation, backend and outcome, which is `done` or a code.
        bytes: of files that came or went, by operation and backend.
    """

    calls: dict[tuple[str, str], int]
    durations: dict[str, tuple[list[int], float]]
    errors: dict[str, int]
    files: dict[tuple[str, str, str], int]
    bytes: dict[tuple[str, str], int]


class Metrics:
    """Counts requests. Safe for several threads.

    Args:
        operations: all that there are: their series begin with zero, as a rate cannot see what one begins with.
    """

    def __init__(self, operations: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._calls = Counter(dict.fromkeys([(operation, "200") for operation in operations], 0))
        self._durations: dict[str, Duration] = {}
        self._errors = Counter(dict.fromkeys(STATUS_OF_CODE, 0))
        self._files: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()

    def ended(self, call: Call, took_s: float) -> None:
        """A request was answered."""
        with self._lock:
            self._calls[call.operation, call.status] += 1
            if (duration := self._durations.get(call.operation)) is None:
                duration = self._durations[call.operation] = Duration()
            duration.add(took_s)
            if call.code is not None:
                self._errors[call.code] += 1

    def worked(self, call: Call, lines: Sequence[Told]) -> None:
        """Files were worked on, each as its line in the audit log tells; what is of no file has no path there."""
        operation, backend = call.operation, call.backend
        outcomes = Counter([str(line["outcome"]) for line in lines if line["path"] is not None])
        size = 0
        if operation in _MOVING:
            size = sum([int(line["bytes"] or 0) for line in lines if line["outcome"] == "done"])
        with self._lock:
            for outcome, count in outcomes.items():
                self._files[operation, backend, outcome] += count
            if size:
                self._bytes[operation, backend] += size

    def counts(self) -> Counts:
        with self._lock:
            durations = {name: ([*found.counts], found.sum_s) for name, found in self._durations.items()}
            return Counts(dict(self._calls), durations, dict(self._errors), dict(self._files), dict(self._bytes))


class Counted:
    """An application whose requests have an id, and are counted."""

    def __init__(self, app: WSGIApplication, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        began = time.perf_counter()
        call = environ[_CALL] = Call()
        structlog.contextvars.bind_contextvars(request=call.request_id)

        def begin(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            call.status = status[:3]
            headers.append(("X-Request-Id", call.request_id))
            return start_response(status, headers, exc_info)

        return _Body(self._app(environ, begin), call, began, self._metrics)


class _Body:
    """An answer, which is counted when it has been sent."""

    __slots__ = ("_began", "_body", "_call", "_metrics")

    def __init__(self, body: Iterable[bytes], call: Call, began: float, metrics: Metrics) -> None:
        self._body, self._call, self._began, self._metrics = body, call, began, metrics

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            self._metrics.ended(self._call, time.perf_counter() - self._began)
