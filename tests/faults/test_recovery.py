"""What a fault left in doubt, in a process that goes on: recovery finds out, and catalog and disk agree again."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace

import pytest

from lab.faults import CHANGES_OF_NAMES, Fault, Kernel
from lab.file_changes import BATCHES_IN_GROUPS, Batch, Lab
from storage import journal
from storage.exceptions import StorageError

# A server that fails in these leaves open what it did, or whether that would outlast a crash.
DOUBTFUL = CHANGES_OF_NAMES | {"fsync"}

CHANGES = [found for found in BATCHES_IN_GROUPS if not str(found.id).startswith(("download", "three downloads"))]


@pytest.mark.parametrize(("batch", "group_size"), CHANGES, indirect=["group_size"])
@pytest.mark.parametrize("is_done", [True, False], ids=["done", "not done"])
def test_what_a_fault_left_in_doubt_is_settled(lab: Lab, batch: Batch, group_size: None, is_done: bool) -> None:
    course, steps = lab.course(batch), lab.steps(batch)
    for at in (number for number, step in enumerate(steps, 1) if step in DOUBTFUL):
        world, raised = lab.world(batch), False
        with (
            Kernel(Fault(at, errno.EIO, is_done=is_done), lab.is_nfs).in_place(),
            contextlib.suppress(StorageError),
        ):
            raised = True
            world.run()
            raised = False
        assert world.recover(lab.catalog) == 0
        assert not journal.has_abandoned(world.batch.name)
        assert world.open_intents(lab.catalog) == []
        state = world.state(lab.catalog)
        if steps[at - 1] == "unlink":  # what could not be tidied up then
            state = replace(state, unfinished=[])
        count = course.settled(state)
        assert raised or count == len(batch.items), f"step {at}, {steps[at - 1]}"
