"""Changes to many files at the price of few: what waits for the disk is done for a group of them together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Generic, Protocol, TypeVar

from storage import journal
from storage.exceptions import BackendUnavailable
from storage.files import Actor, Directory
from storage.journal import Identity, Intent, KeyedItem
from storage.models import ScaleFile
from storage.os_errors import quoted, translate

# The more, the fewer waits for the disk; twice as many save nothing that can be measured.
GROUP_FILES = 256

# Bound the descriptors that a call holds, which may be a process's 1,024 for all: files of a group that are open
# together, and directories that their paths lie in.
OPEN_FILES = 64
DIRECTORIES = 64


@dataclass(eq=False)
class Change:
    """What is done to one file of a batch.

    Attributes:
        operation: its verb, for errors.
        size: the file's in bytes, once known.
        directories: paths of those in which a name was changed, once it was.
        before: what was at the path when it was looked at.
        intent: its place in the journal, where it has one.
        is_changed: whether a name was changed, or perhaps was.
    """

    file: ScaleFile
    operation: ClassVar[str]
    size: int | None = field(default=None, init=False)
    directories: list[str] = field(default_factory=list, init=False)
    before: Identity | None = field(default=None, init=False)
    intent: Intent | None = field(default=None, init=False)
    is_changed: bool = field(default=False, init=False)

    @property
    def subject(self) -> str:
        """Operation and object, for errors."""
        return f"{self.operation} {quoted(self.file.file_path)}"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around the one step that changes names. A server that fails in it leaves open whether it did it."""
        try:
            yield
        except OSError as error:
            self.is_changed = isinstance(translate(error, self.subject), BackendUnavailable)
            raise
        self.is_changed = True

    def plan(self, item: KeyedItem | None, *, overwrite: bool) -> Intent | None:
        """What is written into the journal before it is done; None for nothing.

        Args:
            item: of what request with an idempotency key it is.
        """
        del item, overwrite
        return None

    def record(self) -> ScaleFile | None:
        """The model, changed to what was done; None if there is nothing to save."""
        return None


Item = TypeVar("Item", bound=Change)


class Closes(Protocol):
    def close(self) -> None: ...


class EndOfGroup(Exception):
    """Raised in a step for an item that must find those before it done: it will begin the next group."""


class Group(Generic[Item]):
    """Some changes of a batch, which become durable and are recorded together.

    First it is looked what is there (`look`), then it is written down what will be done (`begin`). Then each step
    is taken with all items, in order, before the next step begins. An item that fails at a step leaves the group
    together with all after it, and the steps that follow are taken with those before it. So in the end `items` are
    done, as if one after another. Steps are taken inside the group's block.

    Attributes:
        workspace: the open directory that all paths are in. Set before the block begins.
        items: those that no step has failed with.
        failure: why the first that is no more in `items` failed; None if nothing did.
        held: what is closed when the block ends, last first.
    """

    workspace: Directory

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = list(items)
        self.failure: Exception | None = None
        self._failed: Item | None = None
        self.held: list[Closes] = []
        self._all = list(items)
        self._at = 0
        self._taken: set[object] = set()
        self._above: set[str] = set()
        self._is_whole = True
        self._directories: dict[str, Directory] = {}
        self._identities: dict[str, tuple[int, int]] = {}
        self._made: list[str] = []
        self._synced: set[str] = set()

    def __enter__(self) -> Group[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self.held:
            self.held.pop().close()
        if not self._is_whole or error is not None:
            self.workspace.remove_directories(self._made)  # those that are empty
        if error is not None:  # nobody will record what is done
            journal.abandon([item.intent for item in self._all if item.intent])

    def look(self, step: Callable[[Item], None]) -> None:
        """Take the step that comes before `begin`. An item that fails in it begins the next group, to fail there.

        So none of a group depends on what an earlier one of it will do.
        """
        for number, item in enumerate(self.items):
            self._at = number
            try:
                step(item)
            except Exception as error:
                if number == 0:
                    self._fail(item, error)
                del self.items[number:]
        self._all = list(self.items)

    def take(self, *paths: str) -> None:
        """End the group before the item at work if an earlier one touches one of these paths, by whatever name.

        Of one path no two things must be under way: what became of them could not be told apart. It ends, too,
        before the paths lie in more directories than may be open.
        """
        self._above.update(map(directory_of, paths))
        if len(self._above) > DIRECTORIES:
            self.end_before_this()
        keys: set[object] = set(paths)
        for path in paths:
            with contextlib.suppress(OSError):
                keys.add(self._place(path))
        if not self._taken.isdisjoint(keys):
            self.end_before_this()
        self._taken |= keys

    def _place(self, path: str) -> tuple[int, int, str]:
        """What is the same for all paths that lead to one name in one directory."""
        head, _, name = path.rpartition("/")
        found = self._identities.get(head)
        if found is None:
            status = os.fstat(self.parent(path)[0].fd)
            found = self._identities[head] = status.st_dev, status.st_ino
        return *found, name

    def begin(self, keyed: Mapping[int, KeyedItem], actor: Actor | None, *, overwrite: bool) -> None:
        """Write down what will be done with the items; outside of the caller's identity.

        Args:
            keyed: see `Broker.keyed`.
            actor: see `FileView`.

        Raises:
            BackendUnavailable: the catalog cannot be used now; nothing is changed then.
        """
        for item in self.items:
            item.intent = item.plan(keyed.get(id(item.file)), overwrite=overwrite)
            if item.intent:
                item.intent.actor = actor
        journal.begin([item.intent for item in self.items if item.intent])

    def each(self, step: Callable[[Item], None]) -> None:
        """Take a step with every item that is still in the group."""
        for number, item in enumerate(self.items):
            self._at = number
            try:
                step(item)
            except EndOfGroup:
                self._failed = self.failure = None  # of a later one, which will be tried again
                self._cut(number)
            except Exception as error:
                self._fail(item, error)
                self._cut(number)

    def _fail(self, item: Item, error: Exception) -> None:
        self._failed, self.failure = item, _told(error, item)

    def _cut(self, number: int) -> None:
        del self.items[number:]
        self._is_whole = False

    def end_before_this(self) -> None:
        """End the group before the item at work, unless it is the first."""
        if self._at:
            raise EndOfGroup

    def end_after_this(self) -> None:
        """Let the item at work be the last of the group."""
        del self.items[self._at + 1 :]

    def parent(self, path: str, *, create: bool = False) -> tuple[Directory, str]:
        """The directory that holds the last component of `path`, open as long as the group, and that component.

        Args:
            create: make the missing directories (mode 0755); those that no item came to need are removed again.
        """
        head, _, name = path.rpartition("/")
        found = self._directories.get(head)
        if found is None:
            workspace = self.workspace
            found = workspace.make_directory(head, self._made) if create else workspace.directory(head)
            self.held.append(found)
            self._directories[head] = found
        return found, name

    def sync_directories(self, item: Item) -> None:
        """The step that makes durable the names which an item changed; a directory is synced once for all items.

        Where this fails, the item and those after it are in place, whole, and are not recorded: whether they would
        outlast a crash of the host is unknown. They stay, since taking them back would need the very directory
        that the disk has just refused to write.
        """
        for path in item.directories:
            self._sync(path)

    def _sync(self, path: str) -> None:
        while path not in self._synced:
            opened = self._directories.get(path)
            if opened is not None:
                opened.sync()
            else:
                with self.workspace.directory(path) as directory:
                    directory.sync()
            self._synced.add(path)
            if path not in self._made:
                return
            path = directory_of(path)  # a new directory's own name is there

    def record(self, outcomes: dict[int, Exception | None] | None) -> None:
        """Save the models of what is done, in one transaction, then raise what failed. Call when no more open.

        What changed names and is not done stays in the journal, and so does all if the catalog fails.

        Args:
            outcomes: see `Broker.outcomes`.
        """
        outcomes = {} if outcomes is None else outcomes
        saved = [model for item in self.items if (model := item.record()) is not None]
        done = [item.intent for item in self.items if item.intent]
        others = [item for item in self._all[len(self.items) :] if item.intent]
        kept = [item.intent for item in others if item.intent and item.is_changed]
        dropped = [item.intent for item in others if item.intent and not item.is_changed]
        try:
            journal.finish(saved, done, dropped, kept)
        except Exception as error:  # all of them are in place, and none is recorded
            outcomes.update((id(item.file), error) for item in self.items)
            raise
        outcomes.update((id(item.file), None) for item in self.items)
        if self._failed is not None and self.failure is not None:
            outcomes[id(self._failed.file)] = self.failure
            raise self.failure


def directory_of(path: str) -> str:
    """The path of the directory that holds the last component of a workspace path."""
    return path.rpartition("/")[0]


def _told(error: Exception, item: Change) -> Exception:
    if not isinstance(error, OSError):
        return error
    translated = translate(error, item.subject)
    translated.__cause__ = error
    return translated


def groups_of(items: Sequence[Item], *, at_most: int | None = None) -> Iterator[Group[Item]]:
    """The groups of a batch. Each is to be done before the next is asked for: it decides itself where it ends.

    Args:
        at_most: how many items a group has, if fewer than `GROUP_FILES`.
    """
    start, most = 0, min(at_most or GROUP_FILES, GROUP_FILES)
    while start < len(items):
        group = Group(items[start : start + most])
        yield group
        start += len(group.items)
