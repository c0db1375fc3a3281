"""A soak: requests of several users, attackers beside them, and a table of what came of both."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soak
from fuzz.run import Plan, Report, Worker, run
from fuzz.site import Site
from soak.places import link_targets
from soak.site import CALLERS

_ENDLESS = 10**9


@dataclass
class Soaked:
    """What came of a soak: the report of the requests, and how often each attack succeeded."""

    report: Report
    attacks: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def outcomes(self) -> dict[str, dict[str, int]]:
        """By operation: how often each outcome, `ok` or a code."""
        found: dict[str, dict[str, int]] = {}
        for key, count in self.report.statuses.items():
            operation, _, outcome = key.partition(": ")
            if outcome:
                found.setdefault(operation, {})[outcome] = count
        return found

    def lines(self) -> list[str]:
        table = [f"{'operation':<14}{'ok':>8}{'refused':>9}  of them"]
        for operation, outcomes in sorted(self.outcomes.items()):
            refused = {code: count for code, count in sorted(outcomes.items()) if code != "ok"}
            told = ", ".join(f"{code} {count}" for code, count in refused.items())
            table.append(f"{operation:<14}{outcomes.get('ok', 0):>8}{sum(refused.values()):>9}  {told}")
        attacks = [f"{attack:<24}{count:>8} times" for attack, count in sorted(self.attacks.items())]
        first, _, *rest = self.report.lines()
        return [*table, "", *attacks, "", first, *rest]


def soaked(sites: Sequence[Site], seconds: float, saved: Path, seed: int | None = None) -> Soaked:
    """Play and attack for so long; a seed chosen by chance if none is given.

    Args:
        sites: first a `soak_site`, whose tasks the attackers are in; others share its workspace.
    """
    chosen = secrets.randbelow(2**31) if seed is None else seed
    found = Soaked(Report())
    plan = Plan(_ENDLESS, chosen, seconds, saved, generator="soak.requests", before=())
    found.report = run(sites, plan, 12, lambda workers: _attackers(sites[0], workers, chosen, found))
    return found


@contextlib.contextmanager
def _attackers(site: Site, workers: Sequence[Worker], seed: int, found: Soaked) -> Iterator[None]:
    """Attackers in the first two tasks, as their users; and one on the host."""
    workspace = site.directory / "host" / "data"
    config: dict[str, Any] = {
        "workspace": str(workspace),
        "link_targets": link_targets(str(workspace.parent / "outside")),
        "seed": seed,
    }
    with contextlib.ExitStack() as stack:
        for worker, (identity, _) in zip(workers[:2], CALLERS, strict=False):
            assert worker.is_ready.wait(120), "a worker becomes a task"
            who = {"uid": identity.uid, "gid": identity.gid, "groups": identity.groups}
            stack.enter_context(_attacker({**config, "pid": worker.pid, "identity": who}, found))
        stack.enter_context(_attacker({**config, "pid": None}, found))
        yield


@contextlib.contextmanager
def _attacker(config: dict[str, Any], found: Soaked) -> Iterator[None]:
    paths = [str(Path(package).parent) for package in soak.__path__]
    process = subprocess.Popen(
        [sys.executable, "-m", "soak.attacker", json.dumps(config)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        told, _ = process.communicate(timeout=120)
    found.attacks.update(json.loads(told))
