"""Brokers with a mounted volume under faults: each system call of each operation fails in each way.

Afterwards the old or the new is there, on the disk and in the catalog, and nothing else.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from lab.faults import CHANGES_OF_NAMES, Fault, Kernel
from lab.file_changes import BATCHES, BATCHES_IN_GROUPS, Batch, Lab
from storage.exceptions import StorageError
from storage.os_errors import KINDS

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EACCES)


@pytest.mark.parametrize(("batch", "group_size"), BATCHES_IN_GROUPS, indirect=["group_size"])
def test_a_step_that_fails_leaves_the_old_or_the_new_exactly(lab: Lab, batch: Batch, group_size: None) -> None:
    check_every_step(lab, batch)


def test_a_step_that_fails_under_a_strict_umask_leaves_the_old_or_the_new_exactly(lab: Lab) -> None:
    """There, the mode of a new directory is a step of its own."""
    batches = [batch for batch in BATCHES if "missing directories" in batch.name]
    umask = os.umask(0o077)
    try:
        for batch in batches:
            check_every_step(lab, batch)
    finally:
        os.umask(umask)


def check_every_step(lab: Lab, batch: Batch) -> None:
    course, steps = lab.course(batch), lab.steps(batch)
    for code, at in itertools.product(CODES, range(1, len(steps) + 1)):
        kernel, state, raised = lab.broken(batch, Fault(at, code))
        with told(batch, steps[at - 1], at, code, raised):
            if steps[at - 1] == "chmod" and code == errno.EACCES:  # somebody else's file: its mode stays theirs
                state.modes.update(course.states[-1].modes)
            assert state.unfinished == [] or steps[at - 1] == "unlink"  # of just that
            if raised is None:
                assert course.done(replace(state, unfinished=[])) == len(batch.items)
            elif is_uncertain(batch, steps[at - 1], kernel):
                check_error(batch, course.recorded(state), raised, code)
            else:
                check_error(batch, course.done(state), raised, code)


def is_uncertain(batch: Batch, step: str, kernel: Kernel) -> bool:
    """Whether it is told as failed and yet in place: nobody knows for how long, or whether under both names."""
    is_link_of_move = kernel.is_nfs and batch.verb == "move" and step == "unlink"
    return "Group.sync_directories" in kernel.broken or is_link_of_move


def check_error(batch: Batch, done: int, raised: StorageError, code: int) -> None:
    """The error is of the right kind, and a sentence about the first item that is not done."""
    assert done < len(batch.items)
    assert type(raised) is KINDS[code][0]
    sentence = str(raised)
    assert sentence.startswith((f"{batch.verb} {batch.paths[done]!r}", "open the workspace at"))
    assert sentence.endswith(f"({errno.errorcode[code]})")


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: batch.name)
def test_a_server_gone_from_a_step_on_leaves_nothing_half(lab: Lab, batch: Batch) -> None:
    """What cannot be tidied up then is an unfinished file, an empty directory, or the mode of a file not moved."""
    course, steps = lab.course(batch), lab.steps(batch)
    for at in range(1, len(steps) + 1):
        _, state, raised = lab.broken(batch, Fault(at, errno.ESTALE, lasts=True))
        with told(batch, steps[at - 1], at, errno.ESTALE, raised):
            if raised is None:  # nothing was left to do but to tidy up
                assert course.recorded(state) == len(batch.items)
            else:
                check_error(batch, course.recorded(state), raised, errno.ESTALE)


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: batch.name)
def test_a_change_whose_answer_is_lost_leaves_nothing_half(lab: Lab, batch: Batch) -> None:
    """The server did it and the client was told that it failed: then more may be done than is recorded."""
    course, steps = lab.course(batch), lab.steps(batch)
    for at in (number for number, step in enumerate(steps, 1) if step in CHANGES_OF_NAMES):
        _, state, raised = lab.broken(batch, Fault(at, errno.EIO, is_done=True))
        with told(batch, steps[at - 1], at, errno.EIO, raised):
            assert state.unfinished == []
            if raised is None:
                assert course.done(state) == len(batch.items)
            else:
                done = course.recorded(state)
                if batch.verb != "download":  # there the very link that is told as failed may be seen
                    check_error(batch, done, raised, errno.EIO)


def test_the_faults_are_met_by_every_module_that_makes_system_calls(lab: Lab) -> None:
    steps = {step for batch in BATCHES for step in lab.steps(batch)}
    assert steps >= {
        "open",
        "openat2",
        "fstat",
        "fsync",
        "fchmod",
        "chmod",
        "link",
        "rename",
        "renameat2",
        "symlink",
    }
    assert steps >= {"unlink", "mkdir", "lseek", "ftruncate", "copy_file_range", "sync_file_range", "close"}
    assert steps >= ({"pread", "pwrite"} if lab.is_nfs else set())


@contextmanager
def told(batch: Batch, step: str, at: int, code: int, raised: Exception | None) -> Iterator[None]:
    """Say of a failed assertion what was broken."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"{batch.name}: step {at}, {step}, met {errno.errorcode[code]}; raised was {raised!r}")
        raise
