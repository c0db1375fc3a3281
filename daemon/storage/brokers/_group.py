"""Changes to many files at the price of few: what waits for the disk is done for a group of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Generic, TypeVar

from storage.files import Directory
from storage.models import ScaleFile, save_changed
from storage.os_errors import quoted, translate
from storage.transfer import Unfinished

# Bounds the descriptors that a call holds: each file of a group has at most two, of itself and of its directory,
# or of two directories.
GROUP_FILES = 64


@dataclass(eq=False)
class Change:
    """What is done to one file of a batch.

    Attributes:
        operation: its verb, for errors.
        size: the file's in bytes, once known.
        directories: paths of those in which a name was changed, once it was.
    """

    file: ScaleFile
    operation: ClassVar[str]
    size: int | None = field(default=None, init=False)
    directories: list[str] = field(default_factory=list, init=False)

    @property
    def subject(self) -> str:
        """Operation and object, for errors."""
        return f"{self.operation} {quoted(self.file.file_path)}"

    def record(self) -> ScaleFile | None:
        """The model, changed to what was done; None if there is nothing to save."""
        return None


Item = TypeVar("Item", bound=Change)


class EndOfGroup(Exception):
    """Raised in a step for an item that must find those before it done: it will begin the next group."""


class Group(Generic[Item]):
    """Some changes of a batch, which become durable and are recorded together.

    Each step is taken with all items, in order, before the next step begins. An item that fails at a step leaves
    the group together with all after it, and the steps that follow are taken with those before it. So in the end
    `items` are done, as if one after another. Steps are taken inside the group's block.

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
        self.held: list[Directory | Unfinished] = []
        self._at = 0
        self._is_whole = True
        self._directories: dict[str, Directory] = {}
        self._made: list[str] = []
        self._synced: set[str] = set()

    def __enter__(self) -> Group[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for held in reversed(self.held):
            held.close()
        if not self._is_whole or error is not None:
            self.workspace.remove_directories(self._made)  # those that are empty

    def each(self, step: Callable[[Item], None]) -> None:
        """Take a step with every item that is still in the group."""
        for number, item in enumerate(self.items):
            self._at = number
            try:
                step(item)
            except EndOfGroup:
                self._cut(number)
            except Exception as error:
                self.failure = _told(error, item)
                self._cut(number)

    def _cut(self, number: int) -> None:
        del self.items[number:]
        self._is_whole = False

    @property
    def earlier(self) -> Sequence[Item]:
        """The items before the one at work."""
        return self.items[: self._at]

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

    def record(self) -> None:
        """Save the models of what is done, in one transaction, then raise what failed. Call when no more open."""
        saved = [model for item in self.items if (model := item.record()) is not None]
        save_changed(saved)
        if self.failure is not None:
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


def groups_of(items: Sequence[Item]) -> Iterator[Group[Item]]:
    """The groups of a batch. Each is to be done before the next is asked for: it decides itself where it ends."""
    start = 0
    while start < len(items):
        group = Group(items[start : start + GROUP_FILES])
        yield group
        start += len(group.items)
