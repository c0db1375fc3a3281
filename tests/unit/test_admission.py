"""Whose turn it is, as a matter of counting."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokervol.admission import Admission, Pool, Verdict
from brokervol.server import Connection
from lab.processes import wait_until
from sidecar.caller import Caller
from sidecar.errors import Busy
from sidecar.limits import DEFAULTS, Bulkheads, Place, owner_of
from storage.exceptions import PermissionDenied


def test_a_caller_has_so_many_at_once_and_so_many_wait() -> None:
    admission: Admission[int] = Admission(100, 2, 3)
    verdicts = [admission.enter("a", number) for number in range(6)]
    assert verdicts == [Verdict.STARTS] * 2 + [Verdict.WAITS] * 3 + [Verdict.REFUSED]
    assert admission.enter("b", 7) is Verdict.STARTS
    assert admission.leave("b") == []
    assert [admission.leave("a") for _ in range(3)] == [[2], [3], [4]]
    assert [admission.leave("a") for _ in range(2)] == [[], []]
    assert admission.enter("a", 8) is Verdict.STARTS


def test_callers_have_their_turn_one_after_the_other() -> None:
    admission: Admission[str] = Admission(1, 1, 10)
    assert admission.enter("z", "z0") is Verdict.STARTS
    for name in ("a0", "a1", "a2", "b0", "b1", "c0"):
        assert admission.enter(name[0], name) is Verdict.WAITS
    served, caller = [], "z"
    while started := admission.leave(caller):
        served += started
        caller = started[0][0]
    assert served == ["a0", "b0", "c0", "a1", "b1", "a2"]


def test_no_caller_takes_more_than_half_of_what_others_leave() -> None:
    admission: Admission[int] = Admission(16, 16, 0)
    taken = [sum(admission.enter(caller, number) is Verdict.STARTS for number in range(16)) for caller in range(6)]
    assert taken == [8, 4, 2, 1, 1, 0]


def test_the_caller_nobody_is_limited_by_the_total_alone() -> None:
    admission: Admission[int] = Admission(4, None, 1)
    verdicts = [admission.enter(None, number) for number in range(6)]
    assert verdicts == [Verdict.STARTS] * 4 + [Verdict.WAITS, Verdict.REFUSED]


def test_who_gives_up_waiting_is_passed_over() -> None:
    admission: Admission[int] = Admission(1, 1, 5)
    for number in range(4):
        admission.enter("a", number)
    admission.withdraw("a", 1)
    assert admission.leave("a") == [2]
    admission.withdraw("a", 3)
    assert admission.leave("a") == []
    assert admission.enter("b", 4) is Verdict.STARTS


@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["enter", "leave", "withdraw"])), max_size=80),
)
def test_nothing_is_lost_and_no_limit_is_passed(
    most: int, per_caller: int, waiting: int, steps: list[tuple[str, str]]
) -> None:
    admission: Admission[tuple[str, int]] = Admission(most, per_caller, waiting)
    running: list[tuple[str, int]] = []
    queued: list[tuple[str, int]] = []
    for number, (caller, step) in enumerate(steps):
        request = (caller, number)
        if step == "enter":
            verdict = admission.enter(caller, request)
            {Verdict.STARTS: running, Verdict.WAITS: queued}.get(verdict, []).append(request)
        elif step == "leave" and (own := [one for one in running if one[0] == caller]):
            running.remove(own[0])
            for started in admission.leave(caller):
                queued.remove(started)
                running.append(started)
        elif step == "withdraw" and (own := [one for one in queued if one[0] == caller]):
            queued.remove(own[0])
            admission.withdraw(caller, own[0])
        assert len(running) <= most
        for one in "abc":
            assert [found[0] for found in running].count(one) <= per_caller
            assert [found[0] for found in queued].count(one) <= waiting
    while running:
        done = running.pop()
        for started in admission.leave(done[0]):
            queued.remove(started)
            running.append(started)
    assert not queued, "who waits has its turn in the end"


def test_the_pool_starts_threads_as_they_are_needed_and_outlives_errors() -> None:
    gate, worked = threading.Event(), threading.Semaphore(0)
    before = threading.active_count()

    def work(item: int) -> None:
        if item < 3:
            gate.wait(20)
        worked.release()
        if item == 3:
            raise ValueError("one that fails")

    pool: Pool[int] = Pool(work)
    for item in range(3):
        pool.submit(item)
    assert threading.active_count() == before + 3
    gate.set()
    for item in range(3, 20):
        assert worked.acquire(timeout=20)
        pool.release()
        pool.submit(item)
    assert threading.active_count() == before + 3


# Bulkheads


def full(bulkheads: Bulkheads, workspace: str, caller: str) -> list[Place]:
    """Take what there is for this caller, without waiting."""
    bulkheads._most_waiting = 0
    taken = []
    while True:
        try:
            taken.append(bulkheads.enter(workspace, caller))
        except Busy:
            return taken


def test_one_workspace_takes_its_part_and_one_caller_half_of_what_others_leave() -> None:
    bulkheads = Bulkheads(DEFAULTS._replace(max_requests=128, max_requests_per_workspace=20))
    assert [len(full(bulkheads, "dead", caller)) for caller in "abcdef"] == [10, 5, 3, 1, 1, 0]
    assert len(full(bulkheads, "other", "a")) == 10


def test_a_caller_keeps_half_of_its_requests_for_other_workspaces() -> None:
    bulkheads = Bulkheads(DEFAULTS._replace(max_requests_per_caller=8))
    assert len(full(bulkheads, "dead", "a")) == 4


def test_however_many_workspaces_are_dead_there_is_a_place_in_one_more() -> None:
    bulkheads = Bulkheads(DEFAULTS._replace(max_requests=64, max_requests_per_workspace=64))
    taken = [
        sum(len(full(bulkheads, f"dead{workspace}", str(caller))) for caller in range(8)) for workspace in range(6)
    ]
    assert taken == [32, 16, 8, 4, 2, 1]
    assert len(full(bulkheads, "live", "a")) == 1


def test_a_place_that_is_given_back_is_for_who_waits() -> None:
    bulkheads = Bulkheads(DEFAULTS._replace(max_requests_per_workspace=2))
    place = bulkheads.enter("ws", "a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bulkheads.enter, "ws", "a")
        wait_until(lambda: bool(bulkheads._waiting), "somebody to wait")
        assert not waiting.done()
        with pytest.raises(Busy, match="'ws' is busy"):
            bulkheads.enter("ws", "a")  # one waits already
        place.close()
        waiting.result(timeout=5).close()
    assert not bulkheads._taken
    assert not bulkheads._taken_by
    assert not bulkheads._waiting


def test_a_connection_counts_for_its_caller_and_those_of_nobody_known_for_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(cast(Any, None), ours)
        assert owner_of(connection) == f"uid {os.geteuid()}"
        with contextlib.closing(Caller(ours)) as caller:
            connection.peer = caller
            assert owner_of(connection) == caller.owner
        connection.peer = PermissionDenied("it cannot be seen")
        assert owner_of(connection) == "unidentified"
