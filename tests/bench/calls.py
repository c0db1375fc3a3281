"""Single calls, each timed alone: who makes them, taking turns, and what came of it by call."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Timings = dict[str, list[float]]
"""Seconds of each call that was made, by the name of the call."""


@dataclass(frozen=True)
class Caller:
    """One way to make calls.

    Attributes:
        make: makes so many of each, and returns how long they took.
        count: how many in one round.
        includes: what a figure of its includes, in a few words.
    """

    name: str
    make: Callable[[int], Timings]
    count: int
    includes: str


@dataclass(frozen=True)
class Calls:
    """All that was measured of one call: by caller, ours first, the seconds of each, round by round."""

    section: str
    name: str
    samples: Mapping[str, Sequence[Sequence[float]]]
    includes: Mapping[str, str]

    @property
    def ours(self) -> str:
        return next(iter(self.samples))

    def median_ms(self, caller: str) -> float:
        return statistics.median(self._all(caller)) * 1000

    def p99_ms(self, caller: str) -> float:
        seconds = sorted(self._all(caller))
        return seconds[min(int(len(seconds) * 0.99), len(seconds) - 1)] * 1000

    def spread(self, caller: str) -> float:
        """How far the medians of the rounds lie apart: slowest less fastest, as a part of the median."""
        medians = [statistics.median(each) * 1000 for each in self.samples[caller]]
        return (max(medians) - min(medians)) / abs(self.median_ms(caller))

    def less_ms(self, rival: str) -> float:
        """By how much ours takes longer."""
        return self.median_ms(self.ours) - self.median_ms(rival)

    def ratio(self, rival: str) -> float:
        """The median of ours divided by that of a rival: below 1, ours took less time."""
        return self.median_ms(self.ours) / self.median_ms(rival)

    def _all(self, caller: str) -> list[float]:
        return [seconds for each in self.samples[caller] for seconds in each]


def take_turns(section: str, callers: Sequence[Caller], rounds: int, settle: Callable[[], object]) -> list[Calls]:
    """Let the callers make their calls in turn, ours first, and in every second round in the reverse order.

    Args:
        settle: called before each, not timed.
    """
    samples: dict[str, dict[str, list[list[float]]]] = {}
    for number in range(rounds):
        for caller in callers if number % 2 == 0 else reversed(callers):
            settle()
            gc.collect()
            for name, seconds in caller.make(caller.count).items():
                samples.setdefault(name, {}).setdefault(caller.name, []).append(seconds)
    return [
        Calls(
            section,
            name,
            {caller.name: found[caller.name] for caller in callers if caller.name in found},
            {caller.name: caller.includes for caller in callers if caller.name in found},
        )
        for name, found in samples.items()
    ]


_HEAD = f"{'':36}{'p50 ms':>9}{'p99 ms':>9}{'spread':>8}{'ours less theirs':>18}  {'ours/theirs':12}  includes"


def table(found: Sequence[Calls]) -> Iterator[str]:
    """The lines of it, for people; none if nothing was measured."""
    if found:
        yield _HEAD
    for calls in found:
        yield ""
        yield f"{calls.section}: {calls.name}"
        for caller in calls.samples:
            took = f"{calls.median_ms(caller):9.3f}{calls.p99_ms(caller):9.3f}{calls.spread(caller):8.0%}"
            versus = f"{'':18}  {'':12}"
            if caller != calls.ours:
                versus = f"{calls.less_ms(caller):+15.3f} ms  {calls.ratio(caller):<12.3g}"
            yield f"  {caller:34}{took}{versus}  {calls.includes[caller]}"


def as_json(calls: Calls) -> dict[str, Any]:
    """All of it, for programs."""
    return asdict(calls) | {
        "p50_ms": {caller: calls.median_ms(caller) for caller in calls.samples},
        "p99_ms": {caller: calls.p99_ms(caller) for caller in calls.samples},
    }
