"""How much the sidecar does at once, for whom and in which workspace: the limits, and the bulkheads.

A workspace whose backend hangs keeps the threads that work in it. What it can keep is bounded, so that others are
served as ever.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from typing import NamedTuple, TypeVar

from brokervol.server import Connection
from brokervol.server import Limits as ServerLimits
from brokervol.settings import Settings
from sidecar.caller import Caller
from sidecar.errors import Busy
from storage import linux
from storage.os_errors import quoted

T = TypeVar("T")

# Of those that one caller has in a workspace at once, so many more may wait for a place, and so long.
_WAITING_PART = 3
_WAIT_S = 2.0


class Limits(NamedTuple):
    """The settings in force, by their names."""

    max_requests: int
    max_requests_per_caller: int
    max_requests_per_workspace: int
    max_waiting: int
    max_connections_per_caller: int
    max_body_bytes: int
    header_timeout_s: int
    client_timeout_s: int
    client_bytes_per_s: int
    idle_timeout_s: int
    drain_timeout_s: int

    def of_server(self) -> ServerLimits:
        return ServerLimits(
            requests=self.max_requests,
            requests_per_caller=self.max_requests_per_caller,
            waiting_per_caller=self.max_waiting,
            connections_per_caller=self.max_connections_per_caller,
            head_s=self.header_timeout_s,
            client_s=self.client_timeout_s,
            client_bytes_per_s=self.client_bytes_per_s,
            idle_s=self.idle_timeout_s,
            drain_s=self.drain_timeout_s,
        )


def limits_of(options: Settings) -> Limits:
    """The settings that say how much."""
    return Limits(*(getattr(options, name) for name in Limits._fields))


DEFAULTS = limits_of(Settings({}))


def owner_of(connection: Connection) -> str:
    """Whom a connection counts for: its caller's container or user, and those that are not known together."""
    if isinstance(connection.peer, Caller):
        return connection.peer.owner
    if connection.peer is not None:
        return "unidentified"
    _, uid, _ = linux.peer_credentials(connection.socket)
    return f"uid {uid}"


class Bulkheads:
    """Places to work in, of each workspace a number. Safe for several threads.

    A caller gets at most half of the places that the others leave free in a workspace, and in one workspace at
    most half of its own requests, so that neither another caller nor another workspace of its own is without. All
    workspaces together leave some places for a further one: each gets at most half of what is free.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_requests
        self._most_per_workspace = limits.max_requests_per_workspace
        self._most_of_caller = max(1, min(limits.max_requests_per_workspace, limits.max_requests_per_caller) // 2)
        self._most_waiting = max(1, self._most_of_caller // _WAITING_PART)
        self._changed = threading.Condition()
        self._taken: Counter[str] = Counter()
        self._taken_by: Counter[tuple[str, Hashable]] = Counter()
        self._waiting: Counter[tuple[str, Hashable]] = Counter()

    def enter(self, workspace: str, caller: Hashable) -> Place:
        """Take a place; close it when the request is done.

        Raises:
            Busy: there is none, also not after a moment.
        """
        by = (workspace, caller)
        with self._changed:
            if not self._is_free(by) and not self._wait(by):
                raise Busy(f"workspace {quoted(workspace)} is busy with other requests; try again")
            self._taken[workspace] += 1
            self._taken_by[by] += 1
        return Place(self, by)

    def leave(self, by: tuple[str, Hashable]) -> None:
        with self._changed:
            _take_one(self._taken, by[0])
            _take_one(self._taken_by, by)
            self._changed.notify_all()

    def _wait(self, by: tuple[str, Hashable]) -> bool:
        if self._waiting[by] >= self._most_waiting:
            return False
        self._waiting[by] += 1
        try:
            return self._changed.wait_for(lambda: self._is_free(by), _WAIT_S)
        finally:
            _take_one(self._waiting, by)

    def _is_free(self, by: tuple[str, Hashable]) -> bool:
        own = self._taken[by[0]]
        free = self._most - self._taken.total()
        most = min(self._most_per_workspace, max(1, (free + own) // 2))
        mine = self._taken_by[by]
        most_mine = min(self._most_of_caller, max(1, (most - own + mine + 1) // 2))
        return free > 0 and own < most and mine < most_mine


class Place:
    """One request's place in a workspace, until it is closed."""

    def __init__(self, bulkheads: Bulkheads, by: tuple[str, Hashable]) -> None:
        self._bulkheads = bulkheads
        self._by = by

    def close(self) -> None:
        self._bulkheads.leave(self._by)


def _take_one(counter: Counter[T], key: T) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
