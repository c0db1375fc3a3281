"""The sidecar with faults in the taking and giving back of identities: `python -m lab.faulty_sidecar OPTIONS`.

A fault happens once when a file in $BROKERVOL_LAB_FAULTS, a directory that all may write, has the step's name: the
file is removed, the system call is made where its effect would be left behind, and an error raised. With a first
option `--supervised` the supervisor runs it, and starts it again when it dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from brokervol.supervisor import Program, Supervisor, json_log
from sidecar import __main__ as program
from storage import linux

# In the order of an identity: taken, worn, given back.
TAKING = ("take-groups", "take-ids", "take-capabilities")
WEARING = "work"
GIVING_BACK = ("give-back-capabilities", "give-back-groups", "give-back-ids", "give-back-capabilities-again")
_STEPS = (*TAKING, *GIVING_BACK)

_thread = threading.local()


class _Faults:
    """What is to go wrong."""

    def __init__(self, directory: str) -> None:
        self._directory = os.open(directory, os.O_PATH)  # as ourselves: a caller may not be able to walk there

    def has(self, step: str) -> bool:
        """Whether a fault is due at a step; if so it is no more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(step, dir_fd=self._directory)
            return True
        return False


def _faulty(faults: _Faults, call: Callable[..., Any], *steps: str) -> Callable[..., Any]:
    """`call`, which is made at these steps, failing where it is due."""

    def made(*arguments: Any) -> Any:
        done: list[str] = _thread.__dict__.setdefault("done", [])
        if not done and steps[0] != _STEPS[0]:  # not of an identity: what the process gives up at its start
            return call(*arguments)
        step = next(step for step in steps if step not in done and _STEPS.index(step) >= _next(done))
        done.append(step)
        if step == _STEPS[-1]:
            done.clear()
        if not faults.has(step):
            return call(*arguments)
        if step in TAKING:
            call(*arguments)
            done.append(TAKING[-1])  # what comes next is given back
        raise OSError(errno.EPERM, f"a fault of the laboratory at {step}")

    return made


def _next(done: list[str]) -> int:
    return _STEPS.index(done[-1]) + 1 if done else 0


def _failing_work(faults: _Faults, call: Callable[..., Any]) -> Callable[..., Any]:
    """A call that is made with an identity, failing as badly as can be."""

    def made(*arguments: Any) -> Any:
        if _thread.__dict__.get("done") and faults.has(WEARING):
            raise MemoryError("a fault of the laboratory")
        return call(*arguments)

    return made


def _install(faults: _Faults) -> None:
    linux.set_thread_groups = _faulty(faults, linux.set_thread_groups, "take-groups", "give-back-groups")
    linux.set_fs_ids = _faulty(faults, linux.set_fs_ids, "take-ids", "give-back-ids")
    steps = ("take-capabilities", "give-back-capabilities", "give-back-capabilities-again")
    linux.set_capabilities = _faulty(faults, linux.set_capabilities, *steps)
    linux.openat2 = _failing_work(faults, linux.openat2)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--supervised"]:
        command = [sys.executable, "-m", "lab.faulty_sidecar", *arguments[1:]]
        environment = {**os.environ, "BROKERVOL_SUPERVISED": str(os.getpid())}
        return Supervisor([Program("sidecar", command, environment)], json_log("info")).run()
    _install(_Faults(os.environ["BROKERVOL_LAB_FAULTS"]))
    return program.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
