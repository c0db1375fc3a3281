"""What a benchmark is made of: cases whose contenders take turns, figures beside targets, and their table."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.calls import Calls


def _nothing(_: int) -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Attributes:
        work: does it; called with the number of the repetition, and timed.
        includes: what is true once it has returned, in a few words.
        share: how much of the case's work it does, above 0 and at most 1; what it takes is divided by this.
        tidy: called with the same number after `work`, and not timed.
    """

    name: str
    work: Callable[[int], None]
    includes: str
    share: float = 1.0
    tidy: Callable[[int], None] = _nothing


@dataclass(frozen=True)
class Case:
    """The same work for ours and for its rivals: so many of a unit."""

    name: str
    amount: float
    unit: str
    ours: Contender
    rivals: Sequence[Contender]


@dataclass(frozen=True)
class Sample:
    """What one repetition took: wall time, and CPU time of this process and of the children it waited for."""

    seconds: float
    cpu_s: float


@dataclass(frozen=True)
class Outcome:
    """The samples of a case by contender, one a repetition, in the order of the repetitions."""

    section: str
    case: Case
    samples: dict[str, list[Sample]]

    def seconds(self, name: str) -> float:
        """The median."""
        return statistics.median(sample.seconds for sample in self.samples[name])

    def cpu_s(self, name: str) -> float:
        """The median."""
        return statistics.median(sample.cpu_s for sample in self.samples[name])

    def spread(self, name: str) -> float:
        """How far the repetitions lie apart: slowest less fastest, as a part of the median."""
        seconds = [sample.seconds for sample in self.samples[name]]
        return (max(seconds) - min(seconds)) / self.seconds(name)

    def ratio(self, rival: str) -> float:
        """The median of ours divided by that of a rival: below 1, ours took less time."""
        return self.seconds(self.case.ours.name) / self.seconds(rival)

    def ratios(self, rival: str) -> list[float]:
        """The same for each repetition alone."""
        pairs = zip(self.samples[self.case.ours.name], self.samples[rival], strict=True)
        return [ours.seconds / theirs.seconds for ours, theirs in pairs]


@dataclass(frozen=True)
class Figure:
    """A measured value beside the most that it should be."""

    section: str
    name: str
    value: float
    target: float
    unit: str
    includes: str


def race(section: str, case: Case, repeat: int, *, settle: Callable[[], object]) -> Outcome:
    """Let the contenders do their work in turn, in every second repetition in the reverse order.

    Args:
        settle: called before each, not timed: bytes that one leaves unwritten are not for the next to pay.
    """
    contenders = [case.ours, *case.rivals]
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for repetition in range(repeat):
        for contender in contenders if repetition % 2 == 0 else reversed(contenders):
            settle()
            gc.collect()
            samples[contender.name].append(_timed(contender, repetition))
            contender.tidy(repetition)
    return Outcome(section, case, samples)


def _timed(contender: Contender, repetition: int) -> Sample:
    cpu_s, start = _cpu_s(), time.perf_counter()
    contender.work(repetition)
    seconds = time.perf_counter() - start
    return Sample(seconds / contender.share, (_cpu_s() - cpu_s) / contender.share)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


_HEAD = f"{'':36}{'seconds':>9}{'spread':>8}{'CPU s':>8}{'a second':>15}  {'ours/theirs':20}  includes"


def table(outcomes: Sequence[Outcome], figures: Sequence[Figure]) -> str:
    """All that was measured, for people."""
    lines = [_HEAD] if outcomes else []
    for outcome in outcomes:
        lines += ["", f"{outcome.section}: {outcome.case.name}", *_rows(outcome)]
    if figures:
        lines += ["", f"{'':44}{'value':>9}{'target':>11}"]
    for figure in figures:
        value, target = f"{figure.value:.{1 if figure.value >= 10 else 2}f}", f"< {figure.target:g} {figure.unit}"
        lines.append(f"{figure.section + ': ' + figure.name:44}{value:>9}{target:>11}  {figure.includes}")
    return "\n".join(lines)


def _rows(outcome: Outcome) -> Iterator[str]:
    case = outcome.case
    for contender in (case.ours, *case.rivals):
        name = contender.name
        shown = f"{name}, times {1 / contender.share:.0f}" if contender.share < 1 else name
        rate = f"{case.amount / outcome.seconds(name):,.0f} {case.unit}"
        versus = ""
        if contender is not case.ours:
            each = outcome.ratios(name)
            versus = f"{_short(outcome.ratio(name))} ({_short(min(each))} to {_short(max(each))})"
        took = f"{outcome.seconds(name):9.3f}{outcome.spread(name):8.0%}{outcome.cpu_s(name):8.2f}"
        yield f"  {shown:34}{took}{rate:>15}  {versus:20}  {contender.includes}"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def noise(outcomes: Sequence[Outcome], calls: Sequence[Calls] = ()) -> str:
    """A sentence on how far repetitions of the same work lay apart."""
    spreads = [
        (outcome.spread(name), f"{name} in {outcome.section}: {outcome.case.name}", len(samples))
        for outcome in outcomes
        for name, samples in outcome.samples.items()
    ]
    spreads += [
        (each.spread(name), f"{name} in {each.section}: {each.name}", len(rounds))
        for each in calls
        for name, rounds in each.samples.items()
    ]
    spreads = [each for each in spreads if each[2] > 1]
    if not spreads:
        return "noise: unknown, nothing was repeated"
    middle, (most, where, _) = statistics.median(spread for spread, _, _ in spreads), max(spreads)
    return (
        f"noise: repetitions lay {middle:.0%} of their median apart in the middle, {most:.0%} at most ({where}); "
        "a ratio whose range includes 1 decides nothing"
    )


def as_json(outcomes: Sequence[Outcome], figures: Sequence[Figure]) -> dict[str, Any]:
    """All that was measured, for programs; seconds are those of the whole work, whatever the share done."""
    return {
        "cases": [
            {
                "section": outcome.section,
                "name": outcome.case.name,
                "amount": outcome.case.amount,
                "unit": outcome.case.unit,
                "contenders": [
                    _contender_json(outcome, each) for each in (outcome.case.ours, *outcome.case.rivals)
                ],
            }
            for outcome in outcomes
        ],
        "figures": [asdict(figure) for figure in figures],
    }


def _contender_json(outcome: Outcome, contender: Contender) -> dict[str, Any]:
    name = contender.name
    return {
        "name": name,
        "includes": contender.includes,
        "share": contender.share,
        "seconds": outcome.seconds(name),
        "cpu_s": outcome.cpu_s(name),
        "spread": outcome.spread(name),
        "ours_to_theirs": outcome.ratio(name),
        "samples": [asdict(sample) for sample in outcome.samples[name]],
    }
