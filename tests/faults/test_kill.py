"""A process killed at any step of any operation: the old or the new is there, and no half of it is ever seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab.file_changes import BATCHES_IN_GROUPS, Batch, Course, Lab, World

# After these, there is on the disk what was there before them.
WITHOUT_EFFECT = frozenset(("openat2", "fstat", "lseek", "pread", "sync_file_range", "fsync"))


def check(lab: Lab, world: World, course: Course) -> None:
    """What is recorded is done, nothing is half or lost, what is unfinished is not seen and in nobody's way.

    After recovery, each item is done and recorded, or nothing is left of it.
    """
    state, batch = world.state(lab.catalog), world.batch
    course.recorded(state)
    replaces = batch.overwrite and batch.verb in ("upload", "write", "download")
    assert len(state.unfinished) <= (len(batch.items) if lab.is_nfs else int(replaces))
    listed = {f"workspace/{found.file}" for found in world.broker.list_files(world.volume_path, True)}
    assert listed == {path for path in state.files if path.startswith("workspace/")}
    assert world.recover(lab.catalog) == 0
    recovered = world.state(lab.catalog)
    # What a download leaves in a task's own directory, at most a link of an odd name, is not found again.
    course.settled(replace(recovered, unfinished=[]) if batch.verb == "download" else recovered)
    assert world.open_intents(lab.catalog) == []
    if batch.verb != "move" and batch.overwrite:
        world.run()
        assert course.recorded(world.state(lab.catalog)) == len(batch.items)


@pytest.mark.parametrize(("batch", "group_size"), BATCHES_IN_GROUPS, indirect=["group_size"])
def test_killed_at_any_step_leaves_the_old_or_the_new(lab: Lab, batch: Batch, group_size: None) -> None:
    kill_at_every_step(lab, batch)


@pytest.mark.parametrize(
    "batch",
    [
        Batch("upload", "upload", (("holes", "one"),), ("one",)),
        Batch("move", "move", (("a", "d/b"),), ("a", "d/b")),
    ],
    ids=["upload", "move"],
)
def test_mistake_8_a_crash_leaves_no_half_file_and_loses_none(lab: Lab, batch: Batch) -> None:
    """The ancestor wrote uploads in place, and moved by copy and removal without waiting for the disk.

    Here the process is killed; that the same holds when the power goes is in `test_power.py`.
    """
    kill_at_every_step(lab, batch)


def kill_at_every_step(lab: Lab, batch: Batch) -> None:
    course, steps = lab.course(batch), lab.steps(batch)
    for at, step in enumerate(steps, 1):
        if at > 1 and steps[at - 2] in WITHOUT_EFFECT:
            continue  # the same is there as one step before
        world = lab.world(batch)
        lab.kill(world, at)
        try:
            check(lab, world, course)
        except AssertionError as error:
            error.add_note(f"{batch.name}: killed before step {at}, {step}")
            raise
