"""A run: sites, the workers that play on them, progress, and the verdict."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fuzz
from fuzz import play
from fuzz.corpus import REGRESSIONS
from fuzz.site import Health, Site

_PROGRESS_S = 2.0
_WARM_UP = 300
_SHOWN = 600  # bytes of a request; what was saved has them all


@dataclass(frozen=True)
class Plan:
    """How much is played.

    Attributes:
        requests: how many requests are judged in all.
        seconds: when to stop at the latest; None for never.
        saved: where plays that found a fault are written; see `--replay`.
        generator: the module whose `make(seed, number)` makes the plays.
        before: numbers to be played first, by each caller.
    """

    requests: int
    seed: int
    seconds: float | None
    saved: Path
    generator: str = "fuzz.play"
    before: Sequence[int] = range(-len(REGRESSIONS), 0)


# What goes on beside the plays, given the workers: while the context is open.
Beside = Callable[[Sequence["Worker"]], AbstractContextManager[object]]


@dataclass
class Report:
    """What came of a run."""

    judged: int = 0
    seconds: float = 0.0
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        found = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        rate = self.judged / self.seconds if self.seconds else 0
        return [
            f"{self.judged} requests judged in {self.seconds:.0f} s, {rate:.0f} a second",
            f"answers by status ({found})",
            *_told(self.faults),
            f"{len(self.faults)} faults",
        ]


def _told(faults: Sequence[str]) -> Iterator[str]:
    """The first of each kind: most have one cause. A kind is the text without its numbers and bytes."""
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(re.sub(r"\d+", "", fault.rpartition(" :: ")[2].partition("\n")[0]), []).append(fault)
    for alike in kinds.values():
        yield f"FAULT, {len(alike)} times: {alike[0]}"


class Worker:
    """Our end of a worker process.

    Attributes:
        pid: of the process; it is the task where there is one, once `is_ready` is set.
    """

    def __init__(self, site: Site, config: dict[str, Any], saved: Path) -> None:
        self.statuses: dict[str, int] = {}
        self.judged = 0
        self.faults: list[str] = []
        self._site, self._saved, self._seed = site, saved, config["seed"]
        paths = [str(Path(package).parent) for package in fuzz.__path__]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *sys.path])}
        self.is_ready = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.worker", json.dumps(config)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._thread.join()
        if self._process.wait() != 0:
            self.faults.append(f"a worker ended with {self._process.returncode}")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._heard(json.loads(line))

    def _heard(self, told: dict[str, Any]) -> None:
        if "ready" in told:
            self.is_ready.set()
        elif "fault" in told:
            found = play.Play.from_json(told["play"])
            name = self._saved / f"fault-{self._seed}-{found.number}.json"
            play.save(found, self._seed, str(name))
            sent = b"".join(found.pieces)
            self.faults.append(
                f"{self._site.view} view, seed {self._seed}, number {found.number}, saved in {name} :: "
                f"{told['fault']}\n    sent {sent[:_SHOWN]!r}{'...' if len(sent) > _SHOWN else ''}"
            )
        else:
            self.judged, self.statuses = told["judged"], told["statuses"]


def run(sites: Sequence[Site], plan: Plan, threads: int = 8, beside: Beside = nullcontext) -> Report:
    """Play on all sites at once, and look at each afterwards."""
    warming = replace(plan, requests=_WARM_UP, seed=-1, seconds=30, before=())
    for site in sites:  # what a sidecar loads or opens late is loaded and open then
        _play([site], warming, threads, Report(), nullcontext)
    before = [site.health() for site in sites]
    report = Report()
    _play(sites, plan, threads, report, beside)
    report.faults += _verdict(sites, before)
    return report


def _verdict(sites: Sequence[Site], before: Sequence[Health]) -> Iterator[str]:
    for site, health in zip(sites, before, strict=True):
        site.memory_kb.append(site.health().memory_kb)
        yield from site.check(health)
        yield from (f"{site.view} view logged :: {line[-_SHOWN:]}" for line in site.faults_in_log())


def _play(sites: Sequence[Site], plan: Plan, threads: int, report: Report, beside: Beside) -> None:
    workers = list(_workers(sites, plan, threads))
    started = time.monotonic()
    try:
        with beside(workers):
            _watch(sites, plan, workers)
    finally:
        for worker in workers:
            worker.stop()
    report.seconds = time.monotonic() - started
    for worker in workers:
        report.judged += worker.judged
        report.statuses.update(worker.statuses)
        report.faults += worker.faults


def _watch(sites: Sequence[Site], plan: Plan, workers: Sequence[Worker]) -> None:
    """Until all has been played, or the time is over."""
    told = started = time.monotonic()
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.1)
        now = time.monotonic()
        if plan.seconds is not None and now - started > plan.seconds:
            break
        if now - told > _PROGRESS_S:
            told = now
            for site in sites:
                site.memory_kb.append(site.health().memory_kb)
            _progress(workers, plan, now - started)


def _workers(sites: Sequence[Site], plan: Plan, threads: int) -> Iterator[Worker]:
    """One for each caller of each site; they share the numbers among them."""
    pairs = [(site, caller) for site in sites for caller in site.callers]
    for index, (site, caller) in enumerate(pairs):
        share = plan.requests / len(sites) / len(site.callers)
        config = {
            "generator": plan.generator,
            "before": list(plan.before),
            "seed": plan.seed,
            "first": index,
            "step": len(pairs),
            "requests": share,
            "threads": max(2, threads // len(site.callers)),
            "socket": site.socket_path,
            "forbidden": site.forbidden,
            "task": caller,
        }
        yield Worker(site, config, plan.saved)


def _progress(workers: Sequence[Worker], plan: Plan, elapsed: float) -> None:
    judged = sum(worker.judged for worker in workers)
    faults = sum(len(worker.faults) for worker in workers)
    rate = judged / elapsed
    left = (plan.requests - judged) / rate if rate else float("inf")
    if plan.seconds is not None:
        left = min(left, plan.seconds - elapsed)
    print(f"{judged:>8} requests, {rate:5.0f} a second, {left:4.0f} s left, {faults} faults", file=sys.stderr)
