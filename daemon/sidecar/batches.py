"""Batches: items are done in groups, of as many as take a moment, and what became of each is told by itself.

A broker makes many files durable and recorded at little more than the price of one. What comes out is as if they
had been done one after another: a group ends before an item that touches a path of another in it, that an earlier
attempt has done, or that fails before the broker is asked.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from sidecar import requests
from sidecar.attempts import Attempt
from sidecar.errors import Busy, InvalidRequest
from sidecar.locks import Locks
from sidecar.outcomes import Outcome, told
from sidecar.records import Records
from storage.brokers.broker import Broker
from storage.exceptions import StorageError
from storage.files import check_file_path
from storage.journal import DoneItem, KeyedItem
from storage.models import ScaleFile
from storage.os_errors import quoted

# How many items a broker is asked for at once: twice as many after a group that was fast, half after a slow one.
# So results come as things happen, whatever the files' sizes, and nobody waits long for a path.
MOST_ITEMS = 256
_FAST_S, _SLOW_S = 0.1, 0.25

# Paths of whole workspaces that are being changed: so that file and record of one are of the same request.
_paths = Locks()
PATH_WAIT_S = 10.0


class Site(Protocol):
    """What a batch works with; see `operations.Workspace`."""

    broker: Broker
    records: Records

    def file(self, name: requests.FileName, *, deleted_too: bool = False) -> ScaleFile: ...


@dataclass(frozen=True)
class Verb:
    """What is done with the items of a batch.

    Attributes:
        check: called before each group; what it raises is why the first item fails.
        call: has the broker do it, with items and their models.
        name: of the file that an item is about.
        others: further paths that it changes.
        model: what the broker is given for an item, from the record of its file.
        is_change: whether it changes what is at these paths.
        deleted_too: whether the record may be a deleted one; with that, nothing is left to do.
    """

    check: Callable[[], None]
    call: Callable[[Sequence[tuple[Any, ScaleFile]]], None]
    name: Callable[[Any], requests.FileName] = lambda item: item
    others: Callable[[Any], tuple[str, ...]] = lambda _: ()
    model: Callable[[Any, ScaleFile], ScaleFile] = lambda _, file: file
    is_change: bool = True
    deleted_too: bool = False


@dataclass(frozen=True, slots=True)
class _Asked:
    """An item, the path of its file, and all the paths that it touches."""

    item: Any
    keyed: KeyedItem | None
    name: requests.FileName
    path: str
    touched: tuple[str, ...]


class _Done(Exception):
    """An earlier attempt has done an item."""

    def __init__(self, found: DoneItem) -> None:
        super().__init__()
        self.found = found


class Batch:
    """The items of one request, done in order; after a failure the rest is skipped, unless it `goes_on`."""

    def __init__(self, site: Site, verb: Verb, attempt: Attempt | None, *, goes_on: bool) -> None:
        self._site, self._verb, self._attempt, self._goes_on = site, verb, attempt, goes_on
        self._most = 1
        self._is_stopped = False

    def outcomes(self, arrivals: Iterable[Sequence[Any]]) -> Iterator[list[Outcome]]:
        """What became of the items, a group at a time. No group waits for a further arrival."""
        number = 0
        for items in arrivals:
            at = 0
            while at < len(items):
                found = self._group(items[at : at + self._most], number)
                yield found
                at, number = at + len(found), number + len(found)

    def _group(self, items: Sequence[Any], number: int) -> list[Outcome]:
        """Do some of the items, the first at least."""
        if self._is_stopped:
            return [Outcome(item.label, "skipped") for item in items]
        began = time.monotonic()
        ended: Sequence[ScaleFile | Exception]
        try:
            ended = self._work(items, number)
        except _Done as done:
            ended = [known(self._site.records, done.found, items[0].label)]
        except Exception as error:
            ended = [error]
        taken = time.monotonic() - began
        found = [_outcome(item.label, end, taken / len(ended)) for item, end in zip(items, ended, strict=False)]
        has_failed = any(outcome.status == "failed" for outcome in found)
        self._most = 1 if has_failed else _paced(self._most, taken)
        self._is_stopped = has_failed and not self._goes_on
        return found

    def _work(self, items: Sequence[Any], number: int) -> Sequence[ScaleFile | Exception]:
        """What became of the first items: the model of one that is done, or why it failed.

        Raises:
            Exception: nothing was done, and this is why the first failed.
        """
        self._keyed(items[0], number)  # whoever has done it needs no permission to hear so
        self._verb.check()
        can_many = self._site.broker.tells_outcomes
        with self._alone(self._apart(items if can_many else items[:1], number)) as asked:
            pairs = self._found(asked)
            if pairs[0][1].is_deleted:  # of a verb that allows it: a new file may be at the path of the old
                return [pairs[0][1]]
            return self._call(pairs)

    def _keyed(self, item: Any, number: int) -> KeyedItem | None:
        """Of what request with a key the item is.

        Raises:
            InvalidRequest: it is no item, or another than before.
            _Done: an earlier attempt has done it.
        """
        if isinstance(item, requests.BadLine):
            raise InvalidRequest(item.reason)
        if self._attempt is None:
            return None
        keyed = self._attempt.item(number, item)
        done = self._attempt.done(keyed)
        if done is not None:
            raise _Done(done)
        return keyed

    def _apart(self, items: Sequence[Any], number: int) -> list[_Asked]:
        """The first item, and as many after it as can be done together with it."""
        found: list[_Asked] = []
        touched: set[str] = set()
        for at, item in enumerate(items):
            try:
                asked = self._look_at(item, number + at)
            except Exception:
                if at == 0:
                    raise
                break  # it fails, or is done, when those before it are done
            if not touched.isdisjoint(asked.touched):
                break
            touched.update(asked.touched)
            found.append(asked)
        return found

    def _look_at(self, item: Any, number: int) -> _Asked:
        keyed = self._keyed(item, number)
        name, verb = self._verb.name(item), self._verb
        if name.file_path is not None:
            path = name.file_path
            check_file_path(path)
        else:
            path = self._site.file(name, deleted_too=verb.deleted_too).file_path
        return _Asked(item, keyed, name, path, (path, *verb.others(item)))

    @contextmanager
    def _alone(self, asked: list[_Asked]) -> Iterator[list[_Asked]]:
        """Hold the paths of the items; of the first alone, where others hold some of them."""
        if not self._verb.is_change:
            yield asked
            return
        refusal = Busy(f"another request is changing {quoted(asked[0].path)}; try again")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_paths.held(self._places(asked), refusal, wait_s=0))
            except Busy:
                asked = asked[:1]
                stack.enter_context(_paths.held(self._places(asked), refusal, wait_s=PATH_WAIT_S))
            yield asked

    def _places(self, asked: Iterable[_Asked]) -> set[tuple[str, str]]:
        records = self._site.records
        return {records.place(path) for one in asked for path in one.touched}

    def _found(self, asked: Sequence[_Asked]) -> list[tuple[_Asked, ScaleFile]]:
        """The items with the records of their files, as these are now; as many as the first agrees with."""
        at_path = self._site.records.at_paths([one.path for one in asked if one.name.file_path is not None])
        found: list[tuple[_Asked, ScaleFile]] = []
        for one in asked:
            try:
                file = at_path.get(one.path) if one.name.file_path is not None else self._still(one)
            except StorageError:
                if not found:
                    raise
                break
            file = file or self._site.records.new(one.path)
            if file.is_deleted and found:
                break
            found.append((one, self._verb.model(one.item, file)))
        return found

    def _still(self, asked: _Asked) -> ScaleFile:
        file = self._site.file(asked.name, deleted_too=self._verb.deleted_too)
        if file.file_path != asked.path:
            raise Busy(f"the file with {asked.name.label} was just moved; try again")
        return file

    def _call(self, pairs: Sequence[tuple[_Asked, ScaleFile]]) -> Sequence[ScaleFile | Exception]:
        broker, files = self._site.broker, [file for _, file in pairs]
        broker.keyed = {id(file): one.keyed for one, file in pairs if one.keyed}
        outcomes: dict[int, Exception | None] = {}
        broker.outcomes = outcomes
        try:
            self._verb.call([(one.item, file) for one, file in pairs])
        except Exception as error:
            # What it tells of comes first, in order; if that is nothing, it failed before it began with the first.
            told_of = list(takewhile(lambda file: id(file) in outcomes, files))
            return [outcomes[id(file)] or file for file in told_of] or [error]
        finally:
            broker.outcomes = None
        if not broker.keeps_journal and self._attempt is not None:
            for one, file in pairs:
                if one.keyed is not None:
                    self._attempt.remember(one.keyed, file.id)
        return files


def known(records: Records, done: DoneItem, label: str) -> ScaleFile:
    """The file of an item that was done before, as it is now."""
    found = records.with_id(done.file_id) if done.file_id is not None else None
    return found or records.new(label)


def _outcome(label: str, ended: ScaleFile | Exception, seconds: float) -> Outcome:
    if isinstance(ended, Exception):
        return Outcome(label, "failed", None, told(ended), seconds)
    return Outcome(label, "done", ended, None, seconds)


def _paced(most: int, taken_s: float) -> int:
    if taken_s < _FAST_S:
        return min(2 * most, MOST_ITEMS)
    return max(1, most // 2) if taken_s > _SLOW_S else most


@contextmanager
def path_alone(records: Records, path: str) -> Iterator[None]:
    """Let no other request change what is at a path meanwhile.

    Raises:
        Busy: another does, and goes on doing so.
    """
    refusal = Busy(f"another request is changing {quoted(path)}; try again")
    with _paths.held({records.place(path)}, refusal, wait_s=PATH_WAIT_S):
        yield
