"""Requests with an idempotency key: what an earlier attempt has done is not done again.

A key belongs to a workspace and a user. What was done is remembered for a day, in the catalog and item by item, in
the very transactions that save the records; see `storage.journal`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from sidecar.errors import InProgress, InvalidRequest
from sidecar.locks import Locks
from storage import journal
from storage.catalog import Catalog
from storage.exceptions import BackendUnavailable
from storage.journal import DoneItem, KeyedItem

log = structlog.get_logger()

_ITEMS_A_LOOK = 500

_keys = Locks()


class Attempt:
    """An attempt at a request with a key.

    Args:
        is_first: whether nobody has tried it before.
    """

    def __init__(self, catalog: Catalog, request_id: int, *, is_first: bool) -> None:
        self._journal = catalog.journal
        self._request_id = request_id
        self._is_first = is_first
        self._looked = range(0)
        self._done: dict[int, DoneItem] = {}

    def item(self, number: int, asked: object) -> KeyedItem:
        """The item of this number, from 0; numbers only rise."""
        return KeyedItem(self._request_id, number, digest_of(repr(asked).encode("utf-8", "surrogatepass")))

    def done(self, item: KeyedItem) -> DoneItem | None:
        """What an earlier attempt has done, if it has.

        Raises:
            InvalidRequest: it has done something else.
        """
        if self._is_first:
            return None
        if item.number not in self._looked:
            self._looked = range(item.number, item.number + _ITEMS_A_LOOK)
            self._done = self._journal.done_items(self._request_id, item.number, _ITEMS_A_LOOK)
        found = self._done.get(item.number)
        if found is not None and found.digest != item.digest:
            raise InvalidRequest("Idempotency-Key: an earlier request with this key had another item here")
        return found

    def remember(self, item: KeyedItem, file_id: int | None) -> None:
        """Remember that an item is done, for a broker that keeps no journal."""
        self._journal.remember(item, file_id)


@contextmanager
def attempt(
    catalog: Catalog, scope: tuple[str, str], key: str, digest: str, settle: Callable[[int], object]
) -> Iterator[Attempt]:
    """Hold a key for the block.

    Args:
        scope: the workspace, and whose key it is.
        digest: of what is asked for.
        settle: finds out, with the request's id, what became of what earlier attempts had begun.

    Raises:
        InvalidRequest: the key was used for something else.
        InProgress: an attempt is going on.
    """
    going_on = InProgress("a request with this Idempotency-Key is being worked on")
    with _keys.held({(*scope, key)}, going_on, wait_s=0):
        claim = catalog.journal.claim(*scope, key, digest, journal.process())
        if not claim.is_same:
            raise InvalidRequest("Idempotency-Key: it was used for another request; take a new one for each")
        if claim.is_busy:
            raise going_on
        try:
            if not claim.is_new:
                settle(claim.request_id)
            yield Attempt(catalog, claim.request_id, is_first=claim.is_new)
        finally:
            _release(catalog, claim.request_id)


def _release(catalog: Catalog, request_id: int) -> None:
    try:
        catalog.journal.release(request_id)
    except BackendUnavailable as error:  # it is held only in the eyes of other hosts, and not for long
        log.warning("an idempotency key is not released", reason=str(error))


def digest_of(*parts: bytes) -> str:
    """A digest of some bytes, one after another."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()
