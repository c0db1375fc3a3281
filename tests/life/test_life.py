"""The state machine of `life.machine`, as long as CI has time for it; `python -m life` plays on."""

from __future__ import annotations

import pytest

from lab.namespaces import in_private_namespace
from life.machine import DriverLife, InKernel
from life.play import play

STEPS = 5_000
KERNEL_STEPS = 2_000


def test_any_life_on_mounts_in_memory() -> None:
    class Life(DriverLife):
        steps = 0

    play(Life, STEPS)


@pytest.mark.root
@in_private_namespace
def test_any_life_on_mounts_of_the_kernel() -> None:
    class Life(DriverLife):
        world = InKernel
        steps = 0

    play(Life, KERNEL_STEPS)
