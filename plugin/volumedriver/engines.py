"""Which engine asked for a mount, and whether it still lives and so will give it back."""

from __future__ import annotations

from typing import NamedTuple


class Engine(NamedTuple):
    """A process by its number and when it started, in clock ticks since the machine's boot: unique in one boot."""

    pid: int
    started: int


NOBODY = Engine(0, 0)
"""The engine of references that nobody will give back."""


def engine_of(pid: int, proc: str = "/proc") -> Engine | None:
    """The process `pid`; None where it has ended, or cannot be seen from here.

    An engine that can be seen is in our pid namespace or in one below it, and so are all of its containers.
    """
    try:
        with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else Engine(pid, int(fields[19]))


def is_alive(engine: Engine) -> bool:
    """Whether the process runs."""
    return engine_of(engine.pid) == engine
