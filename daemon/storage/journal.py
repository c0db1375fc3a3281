"""The journal: what is about to change is written down first, so that what a killed process left is settled later.

`begin` writes the intents of some items in one transaction, before anything changes. `finish` removes them in the
transaction that saves the records. An intent that is found later is of an item that nobody knows the end of:
`recover` has the broker look what is there, and finishes or undoes it.
"""

from __future__ import annotations

import logging
import os
import secrets
import uuid as uuids
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from storage.exceptions import BackendUnavailable, PermissionDenied, StorageError
from storage.files import Actor
from storage.models import ScaleFile, catalog_in_use
from storage.os_errors import quoted

if TYPE_CHECKING:
    from storage.brokers.broker import Broker
    from storage.catalog import Catalog

log = logging.getLogger(__name__)

# After this long, an intent of another host is taken for one of a process that is no more. Where it is not, it
# finishes as if nothing had been.
FOREIGN_AGE = timedelta(hours=1)

# How long what a request with an idempotency key has done is remembered.
KEY_AGE = timedelta(hours=24)

_INTENTS_AT_ONCE = 100
_ATTEMPTS = 3


class Identity(NamedTuple):
    """Which file it is that is at a path, on a file system."""

    inode: int
    mtime_ns: int
    size: int
    mode: int


def identity_of(found: os.stat_result) -> Identity:
    return Identity(found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)


class KeyedItem(NamedTuple):
    """An item of a request with an idempotency key: its number from 0, and a digest of what it asks for."""

    request_id: int
    number: int
    digest: str


class DoneItem(NamedTuple):
    """What is known of an item that was done: a digest of what it asked for, and the id of its record, if any."""

    digest: str
    file_id: int | None


class Claim(NamedTuple):
    """A request with an idempotency key, as the catalog knows it.

    Attributes:
        is_new: whether nobody has used the key before.
        is_same: whether who used it asked for the same.
        is_busy: whether another host is at it.
    """

    request_id: int
    is_new: bool
    is_same: bool
    is_busy: bool


class _Process:
    """Who this process is in the journal. `run` is another one in each process, also after a fork."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(8)
        self.owner = f"process {self.run}"
        self.abandoned: dict[str, str] = {}  # token -> workspace


_process = _Process()


def _is_forked() -> None:
    global _process  # noqa: PLW0603  # what the parent does is the parent's
    _process = _Process()


os.register_at_fork(after_in_child=_is_forked)


def use_owner(owner: str) -> None:
    """Set the name by which a later process knows this one's intents as its own. For composition roots.

    Of all processes with this name only one may be alive at a time. Left out, others settle this process's intents
    when they are `FOREIGN_AGE` old.
    """
    _process.owner = owner


def process() -> tuple[str, str]:
    """Owner and run of this process."""
    return _process.owner, _process.run


@dataclass(kw_only=True, eq=False)
class Intent:
    """One item of a batch that is about to change a file.

    Attributes:
        verb: "upload", "move" or "delete".
        file: the model as it is before, and in an intent that was found as it was then.
        before: for a broker on a file system, what was at the model's path; None for nothing.
        size: in bytes, of what an upload brings; None while unknown.
        overwrite, is_recorded: as the operation was asked: see `Broker.overwrite`, and `update_model`.
        item: of what request with an idempotency key it is.
        token: unique, and safe in file names: part of the temporary file's, and stamped on an S3 object.
        owner, run: the process that made it.
        is_rivalled: whether somebody else may be uploading to the same path.
        actor: see `FileView`, of the view that it is done through.

    Its paths are those of the records, in the whole workspace.
    """

    verb: str
    file: ScaleFile
    workspace: str
    file_path: str
    new_path: str | None = None
    before: Identity | None = None
    size: int | None = None
    overwrite: bool = True
    is_recorded: bool = True
    item: KeyedItem | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    owner: str = field(default_factory=lambda: _process.owner)
    run: str = field(default_factory=lambda: _process.run)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    is_rivalled: bool = False
    actor: Actor | None = None

    @property
    def is_of_dead_run(self) -> bool:
        """Whether it is certain that no process is at it any more."""
        return self.owner == _process.owner and (self.run != _process.run or self.token in _process.abandoned)

    @property
    def subject(self) -> str:
        """What it is about, for the log."""
        destination = f" to {quoted(self.new_path)}" if self.new_path else ""
        return f"{self.verb} {quoted(self.file_path)}{destination} in workspace {quoted(self.workspace)}"


def intent_of(verb: str, file: ScaleFile, new_path: str | None = None, *, item: KeyedItem | None = None) -> Intent:
    """An intent for a model, and a new path beside its own."""
    path = str(file.row()["file_path"])  # of a file of a part of a workspace, that is a longer one
    if new_path is not None:
        new_path = path.removesuffix(file.file_path) + new_path
    return Intent(verb=verb, file=file, workspace=file.workspace, file_path=path, new_path=new_path, item=item)


def begin(intents: Sequence[Intent]) -> None:
    """Write intents down, all in one transaction, before anything changes.

    Raises:
        BackendUnavailable: the database cannot be used now.
    """
    if intents:
        catalog_in_use().begin(intents)


def tell_size(intent: Intent) -> None:
    """Write down what an upload's size is, where that was not known when it began.

    Raises:
        BackendUnavailable: the database cannot be used now.
    """
    catalog_in_use().update_intent(intent)


def finish(
    files: Sequence[ScaleFile], done: Sequence[Intent], dropped: Sequence[Intent], kept: Sequence[Intent] = ()
) -> None:
    """Save the models of changed files and close their intents, all in one transaction.

    Args:
        done: what was changed.
        dropped: what changed nothing.
        kept: what nobody knows of, or what is changed and yet cannot be recorded: for `recover`.

    Raises:
        BackendUnavailable: the database cannot be used now; the intents stay, for `recover`.
    """
    abandon(kept)
    if not (files or done or dropped):
        return
    try:
        catalog_in_use().finish(files, done, dropped)
    except BackendUnavailable as error:
        abandon([*done, *dropped])
        if not files:  # nothing is lost: what failed before this, if anything, is what matters
            log.warning("the journal cannot be written: %s", error)
            return
        several = f" and {len(files) - 1} more" if len(files) > 1 else ""
        path = quoted(files[0].file_path)
        raise BackendUnavailable(f"{path}{several}: the file is changed, but not its record: {error}") from error
    except BaseException:
        abandon([*done, *dropped])
        raise


def abandon(intents: Sequence[Intent]) -> None:
    """Leave intents to `recover`, which this process may call at any time."""
    _process.abandoned.update((intent.token, intent.workspace) for intent in intents)


def has_abandoned(workspace: str) -> bool:
    """Whether this process itself has left something to recover."""
    return workspace in _process.abandoned.copy().values()


class Verdict(NamedTuple):
    """What became of an item that nobody knows the end of.

    Attributes:
        is_done: whether it was done, perhaps just now; else there is nothing that it did.
        size: in bytes, of what is at its place now (of an upload or a deletion the path, of a move the new one);
            None for nothing.
        is_its: whether that is what it put there, and not somebody else after it.
        warning: why it was left as it is.
    """

    is_done: bool
    size: int | None = None
    is_its: bool = True
    warning: str = ""


UNDONE = Verdict(False)


class Seen(NamedTuple):
    """The records that an intent can change: the model's own, and the live ones at its path and new path."""

    own: ScaleFile | None
    at_path: ScaleFile | None
    at_new_path: ScaleFile | None


def recover(
    catalog: Catalog,
    broker: Broker,
    volume_path: str | None,
    workspace: str,
    *,
    part: str = "",
    request_id: int | None = None,
    broker_as: Callable[[Actor], Broker] | None = None,
) -> int:
    """Finish or undo what killed processes have left in a workspace, and what this one could not record.

    Harmless where somebody is still at it. What is not certain is left as it is, and told of in the log.

    Args:
        part: the directory of the workspace that `volume_path` shows, where that is not the whole.
        request_id: only what belongs to this request, which nobody is at.
        broker_as: gives a broker that acts as whoever began something, since a server of files may let nobody else
            look, root least of all. Where it is denied that user by now, it is left to `broker`.

    Returns:
        How many items stay open, since the backend or the database cannot tell now; the log says why.

    Raises:
        BackendUnavailable: the database cannot be used now.
    """
    if request_id is not None:
        found = catalog.journal.of_request(request_id)
        abandon(found)
    else:
        left = [token for token, place in _process.abandoned.copy().items() if place == workspace]
        found = catalog.journal.open_in(workspace, _process.owner, datetime.now(UTC) - FOREIGN_AGE)
        for token in set(left) - {intent.token for intent in found}:  # settled by somebody, or never written
            _process.abandoned.pop(token, None)
        found = [intent for intent in found if intent.owner != _process.owner or intent.is_of_dead_run]
    mount = _Mount(broker, volume_path, f"{part}/" if part else "", broker_as)
    return sum(_settle(catalog, mount, some) for some in _chunks(found))


class _Mount(NamedTuple):
    """Where a workspace's files are looked at: all of them, or those whose paths begin so."""

    broker: Broker
    volume_path: str | None
    above: str
    broker_as: Callable[[Actor], Broker] | None

    def look_back(self, intents: Sequence[Intent]) -> Sequence[Verdict | StorageError]:
        found: dict[str, Verdict | StorageError] = {}
        for actor in dict.fromkeys(intent.actor for intent in intents):
            broker = self.broker_as(actor) if self.broker_as and actor else self.broker
            found |= self._look_back(broker, [intent for intent in intents if intent.actor == actor])
        denied = [i for i in intents if i.actor and isinstance(found[i.token], PermissionDenied)]
        if self.broker_as and denied:
            found |= self._look_back(self.broker, denied)
        return [found[intent.token] for intent in intents]

    def _look_back(self, broker: Broker, intents: Sequence[Intent]) -> dict[str, Verdict | StorageError]:
        verdicts = broker.look_back(self.volume_path, [self._below(intent) for intent in intents])
        return {intent.token: verdict for intent, verdict in zip(intents, verdicts, strict=True)}

    def _below(self, intent: Intent) -> Intent:
        new_path = intent.new_path.removeprefix(self.above) if intent.new_path else None
        return replace(intent, file_path=intent.file_path.removeprefix(self.above), new_path=new_path)


def _chunks(intents: Sequence[Intent]) -> Iterator[list[Intent]]:
    remaining = iter(intents)
    while some := list(islice(remaining, _INTENTS_AT_ONCE)):
        yield some


def _settle(catalog: Catalog, mount: _Mount, intents: Sequence[Intent]) -> int:
    """Settle some intents; how many stay open. Records that change meanwhile are looked at again."""
    pending = list(intents)
    for _ in range(_ATTEMPTS):
        seen = [catalog.journal.seen(intent) for intent in pending]
        for intent in pending:
            intent.is_rivalled = catalog.journal.is_rivalled(intent)
        verdicts = mount.look_back(pending)
        again = [
            intent
            for intent, records, verdict in zip(pending, seen, verdicts, strict=True)
            if not _is_settled(catalog, intent, records, verdict)
        ]
        if not again:
            return 0
        pending = again
    return len(pending)


def _is_settled(catalog: Catalog, intent: Intent, seen: Seen, verdict: Verdict | StorageError) -> bool:
    if isinstance(verdict, StorageError):
        log.warning("recovery is put off: %s: %s", intent.subject, verdict)
        return False
    files = records_after(intent, verdict, seen)
    is_closed = catalog.journal.settle(intent, seen, files, is_done=verdict.is_done)
    if is_closed:
        _process.abandoned.pop(intent.token, None)
        outcome = verdict.warning or ("finished" if verdict.is_done else "nothing was changed")
        log.warning("recovered: %s: %s", intent.subject, outcome)
    return is_closed


def records_after(intent: Intent, verdict: Verdict, seen: Seen) -> list[ScaleFile]:
    """The records to save so that the catalog agrees with what is there."""
    if not verdict.is_done:
        return []
    if intent.verb == "upload":
        return _after_upload(intent, verdict, seen)
    if intent.verb == "move":
        return _after_move(intent, verdict, seen)
    return _after_deletion(intent, verdict, seen.own)


def _after_upload(intent: Intent, verdict: Verdict, seen: Seen) -> list[ScaleFile]:
    live, size = seen.at_path, verdict.size
    if size is None:
        return []
    if live and live.file_size == size and live.last_modified >= intent.started:
        return []  # somebody has recorded since then what is there
    if live and not verdict.is_its:
        return [replace(live, file_size=size)]
    file = replace(intent.file, file_size=size, is_deleted=False, deleted=None, id=None)
    if not live and seen.own:
        if seen.own.file_path == intent.file_path:
            file.id = seen.own.id
        else:  # the record has gone with its file
            file.uuid = str(uuids.uuid4())
    return [file]


def _after_move(intent: Intent, verdict: Verdict, seen: Seen) -> list[ScaleFile]:
    path = intent.new_path or ""
    file = seen.own
    if file is None:
        new = replace(intent.file, file_path=path, file_name=path.rpartition("/")[2], file_size=verdict.size)
        return [new] if verdict.size is not None else []
    if not _is_where_it_was(intent, file):
        return []  # somebody went on with it
    if verdict.size is None or not verdict.is_its:
        return [_deleted(file)]
    return [replace(file, file_path=path, file_name=path.rpartition("/")[2], file_size=verdict.size)]


def _after_deletion(intent: Intent, verdict: Verdict, file: ScaleFile | None) -> list[ScaleFile]:
    if not intent.is_recorded or file is None or not _is_where_it_was(intent, file):
        return []
    # A file that is there is somebody else's, and so is the record if it has changed since then.
    is_as_it_was = file.last_modified == intent.file.last_modified
    return [_deleted(file)] if verdict.size is None or is_as_it_was else []


def _is_where_it_was(intent: Intent, file: ScaleFile) -> bool:
    return not file.is_deleted and file.file_path == intent.file_path


def _deleted(file: ScaleFile) -> ScaleFile:
    file = replace(file)
    file.set_deleted()
    return file
