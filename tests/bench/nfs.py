"""NFS volumes beside the kernel's calls, the `mount` command and Docker's local driver, in a machine of its own.

The machine is user-mode Linux (`lab.uml`), with one processor and system calls that cost several times what they
cost outside: only ratios within this section mean anything. What is done in there is in `nfs_inside`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

from bench.calls import Calls
from bench.nfs_inside import RESULTS, SECTION
from bench.session import Session, progress
from lab import prerequisites, uml
from lab.nas import PREPARE

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 600
_SHOWN_LINES = 40


def measure(session: Session) -> None:
    """Boot the machine, measure there, and take over what it found."""
    if reason := prerequisites.absence_of_machine() or prerequisites.absence():
        session.leave_out("nfs", reason)
        return
    progress(f"{SECTION}: booting a machine with an NFS server")
    for calls in _measured_inside(session.sizes.calls, session.repeat):
        session.calls.append(calls)
    session.note_excess(f"{SECTION}, warm: Mount", "mount(2)", 2)


def _measured_inside(calls: int, rounds: int) -> list[Calls]:
    """Raises RuntimeError, with what the machine said last, if it did not get to the end."""
    path = os.pathsep.join(str(_ROOT / source) for source in ("daemon", "plugin", "tests"))
    variables = [f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1"]
    command = ["env", *variables, sys.executable, "-m", "bench.nfs_inside", str(calls), str(rounds)]
    machine = uml.Machine(f"{PREPARE}\ncd {shlex.quote(str(_ROOT))}; {shlex.join(command)}\n")
    with machine.ran(_TIMEOUT_S) as out:
        results = out / RESULTS
        found = json.loads(results.read_text()) if results.exists() else None
    if found is None:
        last = "\n".join(machine.console.splitlines()[-_SHOWN_LINES:])
        raise RuntimeError(f"the machine measured nothing; its last words:\n{last}")
    return [Calls(**each) for each in found]
