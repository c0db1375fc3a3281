"""Playing the state machine for a number of steps."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from life.machine import DriverLife

STEPS_AN_EXAMPLE = 50
_EXAMPLES_AT_ONCE = 200  # Hypothesis remembers what it has tried


def play(life: type[DriverLife], steps: int, progress: Callable[[], object] = lambda: None) -> None:
    """Play at least so many steps. `progress` is called now and then.

    Raises:
        AssertionError: with the shortest life that breaks what must hold at any time.
    """
    threads = threading.active_count()
    while life.steps < steps:
        examples = min((steps - life.steps) // STEPS_AN_EXAMPLE + 1, _EXAMPLES_AT_ONCE)
        run_state_machine_as_test(
            life, settings=settings(max_examples=examples, stateful_step_count=STEPS_AN_EXAMPLE, deadline=None)
        )
        assert threading.active_count() == threads
        progress()
