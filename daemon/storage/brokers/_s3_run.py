"""Items of a batch on S3 that are under way together: in the journal before, and recorded together afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from storage import journal
from storage.exceptions import BackendUnavailable
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
        except BackendUnavailable:
            self.is_uncertain = True
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

    def __enter__(self) -> Run[Item]:
        journal.begin([planned.intent for planned in self.items if planned.intent])
        return self

    def done(self, planned: Planned[Item], file: ScaleFile | None) -> None:
        """Record at the end that an item is done, with its changed model if there is one to save."""
        self._done[planned] = file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        done = [planned.intent for planned in self._done if planned.intent]
        others = [planned for planned in self.items if planned not in self._done]
        # Interrupted, nobody knows.
        kept = [planned.intent for planned in others if planned.intent and (planned.is_uncertain or error)]
        dropped = [planned.intent for planned in others if planned.intent and planned.intent not in kept]
        journal.finish([file for file in self._done.values() if file], done, dropped, kept)
