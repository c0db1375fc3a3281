"""Paths that a request is changing: one goes at a time, so that file and record are of the same request."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sidecar.errors import Busy
from storage.os_errors import quoted

_WAIT_S = 10.0

_changed = threading.Condition()
_held: set[tuple[str, str]] = set()


@contextmanager
def alone(workspace: str, paths: Collection[str]) -> Iterator[None]:
    """Hold paths of the whole workspace, all or none, while no other request of this process changes them.

    Raises:
        Busy: another is still at one of them after 10 s.
    """
    wanted = {(workspace, path) for path in paths}
    deadline = time.monotonic() + _WAIT_S
    with _changed:
        while not _held.isdisjoint(wanted):
            if not _changed.wait(deadline - time.monotonic()):
                raise Busy(f"another request is changing {quoted(next(iter(paths)))}; try again")
        _held.update(wanted)
    try:
        yield
    finally:
        with _changed:
            _held.difference_update(wanted)
            _changed.notify_all()
