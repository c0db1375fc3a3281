"""The power is cut, at any step of any operation: what was done and recorded is there, and nothing is half."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.directories import remove_tree
from lab.file_changes import BATCHES, Batch, Lab, State
from lab.namespaces import in_private_namespace
from lab.power import Disk
from storage.models import use_catalog

pytestmark = pytest.mark.root

# Links are not made durable, see FilesystemBroker.
CHANGES = [batch for batch in BATCHES if batch.verb != "download"]

# After these, there is in the memory and on the disk what was there before them.
WITHOUT_EFFECT = frozenset(("openat2", "fstat", "lseek", "pread"))


class PoweredLab:
    """A laboratory whose worlds are on a disk, and its catalog is not: that outlasts the cut."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(directory)
        self._disk = Disk(directory)
        self._disk.plug_in()
        self._count = 0

    def after_cut(self, batch: Batch, *, step: int | None, has_commit: bool) -> State:
        """What is there when the power was cut at a step, or when all was done.

        Args:
            has_commit: whether another program had the journal written just before.
        """
        self._count += 1
        world = self.lab.world_in(self._disk.mountpoint / f"cut-{self._count}", batch)
        self._disk.write_all()
        if step is None:
            world.run()
        else:
            self.lab.kill(world, step)
        if has_commit:
            self._disk.commit_names()
        self._disk.cut_power()
        return world.state(self.lab.catalog)

    def close(self) -> None:
        self._disk.pull_out()
        use_catalog(None)
        self.lab.catalog.close()


@contextmanager
def powered_lab() -> Iterator[PoweredLab]:
    directory = Path(tempfile.mkdtemp(prefix="bv-power-", dir="/dev/shm"))
    lab = PoweredLab(directory)
    try:
        yield lab
    finally:
        lab.close()
        remove_tree(directory)


@pytest.mark.parametrize("batch", CHANGES, ids=lambda batch: batch.name)
@in_private_namespace
def test_power_cut_at_any_step_leaves_the_old_or_the_new_whole(batch: Batch) -> None:
    with powered_lab() as powered:
        course, steps = powered.lab.course(batch), powered.lab.steps(batch)
        for at, step in enumerate(steps, 1):
            if at > 1 and steps[at - 2] in WITHOUT_EFFECT:
                continue
            for has_commit in (False, True):
                state = powered.after_cut(batch, step=at, has_commit=has_commit)
                try:
                    course.recorded(state)
                except AssertionError as error:
                    error.add_note(f"{batch.name}: cut before step {at}, {step}, {has_commit=}")
                    raise


@pytest.mark.parametrize("batch", CHANGES, ids=lambda batch: batch.name)
@in_private_namespace
def test_what_is_done_outlasts_a_power_cut(batch: Batch) -> None:
    with powered_lab() as powered:
        course = powered.lab.course(batch)
        for has_commit in (False, True):
            state = powered.after_cut(batch, step=None, has_commit=has_commit)
            assert course.done(state) == len(batch.items)


@in_private_namespace
def test_the_power_cut_is_one() -> None:
    """What nobody brought to the disk is lost; and where another's commit wrote the name alone, it is half."""
    directory = Path(tempfile.mkdtemp(prefix="bv-power-", dir="/dev/shm"))
    disk = Disk(directory)
    disk.plug_in()
    (disk.mountpoint / "half").write_text("content")
    disk.commit_names()
    (disk.mountpoint / "lost").write_text("content")
    disk.cut_power()
    half = (disk.mountpoint / "half").read_text()
    is_lost = not (disk.mountpoint / "lost").exists()
    disk.pull_out()
    remove_tree(directory)
    assert half == ""
    assert is_lost
