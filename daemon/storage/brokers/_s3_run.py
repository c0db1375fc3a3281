"""Items of a batch on S3 that are under way together: in the journal before, and recorded together afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from storage import journal
from storage.exceptions import BackendUnavailable, StorageError
from storage.journal import Intent
from storage.models import ScaleFile

Item = TypeVar("Item")


@dataclass(eq=False)
class Planned(Generic[Item]):
    """An item that will be done.

    Attributes:
        intent: its place in the journal, where it has one.
        is_uncertain: whether it failed so that nobody knows what the service did.
    """

    item: Item
    intent: Intent | None
    is_uncertain: bool = False

    @property
    def stamp(self) -> str:
        """What tells the object that it makes from others; see `Found.stamp`."""
        return self.intent.token if self.intent else ""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around requests that change something. A service that fails in them leaves open whether it did it."""
        try:
            yield
        except BaseException as error:
            self.is_uncertain = isinstance(error, BackendUnavailable) or not isinstance(error, StorageError)
            raise


class Run(Generic[Item]):
    """Some items of a batch, in whose block they are worked on; at its end, what is done of them is recorded.

    Attributes:
        overwrite: see `Broker.overwrite`.
        refused: why the first item that cannot be done cannot; it and those after it are not in `items`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        check: Callable[[Item], object],
        plan: Callable[[Item], Intent | None],
        *,
        overwrite: bool = True,
    ) -> None:
        self.overwrite = overwrite
        self.items: list[Planned[Item]] = []
        self.refused: Exception | None = None
        for item in items:
            try:
                check(item)
            except Exception as error:
                self.refused = error
                break
            self.items.append(Planned(item, plan(item)))
            if intent := self.items[-1].intent:
                intent.overwrite = overwrite
        self._done: dict[Planned[Item], ScaleFile | None] = {}
        self._also: list[ScaleFile] = []

    def __enter__(self) -> Run[Item]:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.record(is_known=error is None)

    def cut(self, at: int, error: Exception) -> None:
        """Before `begin`, leave out the items from this place on: `error` keeps the first from being done."""
        del self.items[at:]
        self.refused = error

    def begin(self) -> None:
        """Write down what will be done with the items.

        Raises:
            BackendUnavailable: the catalog cannot be used now; nothing must be changed then.
        """
        journal.begin([planned.intent for planned in self.items if planned.intent])

    def done(self, planned: Planned[Item], file: ScaleFile | None) -> None:
        """Record at the end that an item is done, with its changed model if there is one to save."""
        self._done[planned] = file

    def also(self, file: ScaleFile) -> None:
        """Save the model of what an item that failed has left, too."""
        self._also.append(file)

    def record(self, *, is_known: bool = True) -> None:
        """Save the models of what is done, and close the journal of what is known.

        Args:
            is_known: whether what was not done has changed nothing, but for what is said to be uncertain.

        Raises:
            BackendUnavailable: the catalog cannot be used now; the journal keeps all.
        """
        done = [planned.intent for planned in self._done if planned.intent]
        others = [planned for planned in self.items if planned not in self._done]
        kept = [each.intent for each in others if each.intent and (each.is_uncertain or not is_known)]
        dropped = [each.intent for each in others if each.intent and is_known and not each.is_uncertain]
        files = [file for file in self._done.values() if file]
        journal.finish([*files, *self._also], done, dropped, kept)
