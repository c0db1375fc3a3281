"""What a suite asserts, as its tests say: their docstrings, and those of what is asserted of types that differ."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec

from storage.testing.backend import Backend
from storage.testing.traits import Traits

P = ParamSpec("P")

# Of a decorated test: the traits that it asks for, what is asserted of a backend with them, and of another.
_ALTERNATIVES: dict[
    Callable[..., None], tuple[Mapping[str, object], Callable[..., None], Callable[..., None]]
] = {}


def differs(alternative: Callable[P, None], **traits: object) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Of a backend with all these traits, assert `alternative` instead of the test, on the same fixtures."""

    def decorate(test: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(test)
        def chosen(*args: P.args, **kwargs: P.kwargs) -> None:
            backend = kwargs["backend"]
            assert isinstance(backend, Backend)
            run = alternative if backend.traits.are(traits) else test
            run(*args, **kwargs)

        _ALTERNATIVES[chosen] = (traits, alternative, test)
        return chosen

    return decorate


@dataclass(frozen=True)
class Claim:
    """One test: its ability (the suite class), its name, and what it asserts, in a sentence."""

    ability: str
    name: str
    sentence: str
    _test: Callable[..., None]

    def difference(self, traits: Traits) -> str | None:
        """The sentence asserted instead of a type with these traits; None where it does not differ."""
        test = self._test
        while test in _ALTERNATIVES:
            expected, alternative, otherwise = _ALTERNATIVES[test]
            if traits.are(expected):
                return _sentence(alternative)
            test = otherwise
        return None


def claims(suite: type) -> Iterator[Claim]:
    """What a suite class asserts, by ability in the order of its bases."""
    for ability in suite.__mro__:
        for name, test in vars(ability).items():
            if name.startswith("test_"):
                yield Claim(ability.__name__, name, _sentence(test), test)


def _sentence(test: Callable[..., Any]) -> str:
    text = inspect.getdoc(test)
    assert text is not None, f"{test.__qualname__} does not say what it asserts"
    return " ".join(text.split())
