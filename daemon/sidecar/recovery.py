"""Workspaces are settled when they are first used: see `storage.journal` for what is done with what was left."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import structlog

from sidecar.caller import ActorView
from sidecar.holdings import Holding
from storage import journal
from storage.catalog import Catalog
from storage.exceptions import BackendUnavailable, StorageError
from storage.files import SelfView
from storage.os_errors import quoted

log = structlog.get_logger()

# How long a request waits for another that is settling its workspace.
_WAIT_S = 5

# How long a backend that failed is left alone: twice as long each time, up to the second.
_PAUSE_S, _LONGEST_PAUSE_S = 5, 300

_lock = threading.Lock()
_places: WeakKeyDictionary[Catalog, dict[str, _Place]] = WeakKeyDictionary()


@dataclass
class _Place:
    """What is known of a workspace in this process.

    Attributes:
        is_settled: whether nothing is left, as far as is known.
        was_settled: whether that was so before; then only what this process itself could not record is left.
        due_at: when it may be tried again, by the monotonic clock.
        pause_s: how long it is left alone if it fails then.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    is_settled: bool = False
    was_settled: bool = False
    due_at: float = 0
    pause_s: float = _PAUSE_S

    def is_due(self, workspace: str) -> bool:
        if self.is_settled and not journal.has_abandoned(workspace):
            return False
        return time.monotonic() >= self.due_at

    def tried(self, *, is_settled: bool) -> None:
        self.is_settled = is_settled
        self.was_settled |= is_settled
        self.pause_s = _PAUSE_S if is_settled else min(2 * self.pause_s, _LONGEST_PAUSE_S)
        self.due_at = time.monotonic() + (0 if is_settled else self.pause_s / 2)


def settle(catalog: Catalog, holding: Holding) -> None:
    """Settle a workspace, unless that was done since this process began. Call before it is used.

    Where that fails, the workspace is used as it is, and it is tried again later.

    Raises:
        BackendUnavailable: another request is at it and does not come to an end.
    """
    with _lock:
        place = _places.setdefault(catalog, {}).setdefault(holding.name, _Place())
    if not place.is_due(holding.name):
        return
    if not place.lock.acquire(timeout=0 if place.was_settled else _WAIT_S):
        if place.was_settled:
            return
        raise BackendUnavailable(f"workspace {quoted(holding.name)} is being recovered after a crash")
    try:
        if place.is_due(holding.name):
            place.tried(is_settled=_is_settled(catalog, holding))
    finally:
        place.lock.release()


def _is_settled(catalog: Catalog, holding: Holding) -> bool:
    """At our own mount: who was killed at work may not be there any more. As they were, or as ourselves."""
    try:
        broker = holding.broker(SelfView())
        volume_path = (holding.mountpoint or holding.volume_path) if broker.volume is not None else None
        broker_as = (lambda actor: holding.broker(ActorView(actor))) if holding.is_by_mount else None
        return journal.recover(catalog, broker, volume_path, holding.name, broker_as=broker_as) == 0
    except StorageError as error:
        log.warning("a workspace is not recovered", workspace=holding.name, reason=str(error))
        return False
