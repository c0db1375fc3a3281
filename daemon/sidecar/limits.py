"""How much the sidecar does at once, for whom and in which workspace: the settings, and the bulkheads.

A workspace whose backend hangs keeps the threads that work in it. What it can keep is bounded, so that others are
served as ever.
"""

from __future__ import annotations

import argparse
import re
import threading
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

from brokervol.server import Connection
from brokervol.server import Limits as ServerLimits
from sidecar.caller import Caller
from sidecar.errors import Busy
from storage import linux
from storage.os_errors import quoted

T = TypeVar("T")

_NUMBER = re.compile("[0-9]{1,12}")

# Of those that one caller has in a workspace at once, so many more may wait for a place, and so long.
_WAITING_PART = 3
_WAIT_S = 2.0


class Setting(NamedTuple):
    """A number that the operator may set."""

    name: str
    default: int
    least: int
    most: int
    meaning: str

    @property
    def variable(self) -> str:
        return f"BROKERVOL_{self.name.upper()}"

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def value(self, text: str | None) -> int:
        """What a text says; nothing says the default.

        Raises:
            ValueError: it says no number that is accepted.
        """
        if not text:
            return self.default
        if _NUMBER.fullmatch(text) is None or not self.least <= int(text) <= self.most:
            raise ValueError(
                f"{self.variable} ({self.option}) is {text!r:.60}; "
                f"accepted is a whole number from {self.least} to {self.most}"
            )
        return int(text)


SETTINGS = (
    Setting("max_requests", 128, 1, 4096, "requests worked on at once"),
    Setting(
        "max_requests_per_caller", 24, 1, 4096, "of them of one caller: a container, or a user outside of any"
    ),
    Setting("max_requests_per_workspace", 32, 1, 4096, "of them in one workspace; of one caller half of these"),
    Setting("max_waiting", 64, 0, 10_000, "requests of one caller that wait for their turn"),
    Setting("max_connections_per_caller", 256, 1, 65_536, "connections of one caller, idle ones too"),
    Setting("max_body_bytes", 4 * 1024 * 1024, 1024, 1024**3, "bytes of a body of JSON"),
    Setting("header_timeout_s", 10, 1, 3600, "seconds for the head of a request to come"),
    Setting("client_timeout_s", 30, 1, 86_400, "seconds without a byte of a body sent, or of an answer read"),
    Setting("client_bytes_per_s", 64, 0, 1024**3, "what a client must send or read a second, after these seconds"),
    Setting("idle_timeout_s", 60, 1, 86_400, "seconds that a connection may be silent between requests"),
    Setting("drain_timeout_s", 7, 0, 3600, "seconds for requests in flight to end, when the sidecar is told to"),
)


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


DEFAULTS = Limits(*(setting.default for setting in SETTINGS))


def add_options(parser: argparse._ActionsContainer, environment: Mapping[str, str]) -> None:
    """Give the parser an option for each setting, with what the environment says for its default."""
    for setting in SETTINGS:
        parser.add_argument(
            setting.option,
            metavar="NUMBER",
            default=environment.get(setting.variable),
            help=f"{setting.meaning} [{setting.variable}] ({setting.default})",
        )


def limits_of(options: argparse.Namespace) -> Limits:
    """The settings that the options say.

    Raises:
        ValueError: one is not accepted; the sentence names it, and what is.
    """
    return Limits(*(setting.value(getattr(options, setting.name)) for setting in SETTINGS))


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
