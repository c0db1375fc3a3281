"""What the timer finds and mends while the driver runs: the second table of docs/recovery.md."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.memory_driver import Machine
from lab.processes import wait_until
from storage.definitions import utc_now
from volumedriver.engines import Engine, engine_of, is_alive
from volumedriver.errors import MountFailed, StateUnavailable
from volumedriver.reconcile import GRACE_S, LIVING_ENGINE_GRACE_S, Reconciler, Timer
from volumedriver.store import Intent, ReferenceStore, Verb
from volumedriver.volume import Shown

HOST = {"host_path": "/srv/data"}
OLD, NEW = Engine(1, 1), Engine(2, 2)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.driver.create("data", HOST)
    yield machine
    machine.stop()


def references(machine: Machine) -> dict[str, int]:
    """Of the volume `data`, which memory and disk must agree on."""
    found = dict(machine.driver.get("data").references)
    assert machine.references.load().get("data", {}) == found
    return found


def container(machine: Machine, name: str, mount_id: str) -> None:
    """Mount for a container, and start it."""
    mountpoint = machine.driver.mount("data", mount_id, machine.engine)
    machine.containers.running[name] = machine.mounter.shown(mountpoint)[0]


def later(machine: Machine, seconds: float) -> None:
    machine.now += seconds
    machine.reconciler.step()


def killed_engine(machine: Machine) -> None:
    machine.living_engines = {NEW}


def test_reference_of_a_killed_engine_is_dropped_after_the_grace_period(machine: Machine) -> None:
    container(machine, "one", "x")
    killed_engine(machine)
    machine.containers.running.clear()
    later(machine, 0)
    later(machine, GRACE_S - 1)
    assert references(machine) == {"x": 1}
    later(machine, 1)
    assert references(machine) == {}
    assert machine.mounter.entries == {}
    machine.driver.unmount("data", "x")  # which comes after all, and succeeds


def test_reference_that_a_namespace_backs_is_kept_for_ever(machine: Machine) -> None:
    container(machine, "one", "x")
    killed_engine(machine)
    for _ in range(5):
        later(machine, LIVING_ENGINE_GRACE_S)
    assert references(machine) == {"x": 1}


def test_grace_begins_again_when_the_volume_was_backed(machine: Machine) -> None:
    container(machine, "one", "x")
    killed_engine(machine)
    running = machine.containers.running.copy()
    for _ in range(4):
        machine.containers.running.clear()
        later(machine, 0)
        later(machine, GRACE_S - 1)
        machine.containers.running.update(running)
        later(machine, 1)
    assert references(machine) == {"x": 1}


def test_mount_for_a_container_that_is_not_started_yet_is_kept(machine: Machine) -> None:
    """The engine lives: it is about to start the container, copies into a new volume, or out of one."""
    machine.driver.mount("data", "x", machine.engine)
    for _ in range(3):
        later(machine, LIVING_ENGINE_GRACE_S / 3 - 1)
    assert references(machine) == {"x": 1}


def test_reference_whose_unmount_got_lost_is_dropped_at_last(machine: Machine) -> None:
    machine.driver.mount("data", "x", machine.engine)
    later(machine, 0)
    later(machine, LIVING_ENGINE_GRACE_S)
    assert references(machine) == {}
    assert machine.mounter.entries == {}


def test_reference_of_an_engine_that_cannot_be_seen_is_kept(machine: Machine) -> None:
    """Without the host's pid namespace its containers are not seen either."""
    machine.driver.mount("data", "x", None)
    later(machine, 0)
    later(machine, 2 * LIVING_ENGINE_GRACE_S)
    assert references(machine) == {"x": 1}


def test_only_the_references_of_the_killed_engine_are_dropped(machine: Machine) -> None:
    machine.driver.mount("data", "x", OLD)
    killed_engine(machine)
    later(machine, 0)
    machine.driver.mount("data", "y", NEW)
    later(machine, GRACE_S)
    assert references(machine) == {"y": 1}
    assert len(machine.mounter.entries) == 1


def test_container_of_a_killed_engine_that_is_started_again_leaves_nothing(machine: Machine) -> None:
    """It still has its Mount ID. The engine gives that back once, the one that was killed never."""
    container(machine, "one", "x")
    killed_engine(machine)
    machine.engine = NEW
    machine.containers.running.clear()
    container(machine, "one", "x")
    assert references(machine) == {"x": 1, "former x": 1}
    machine.containers.running.clear()
    machine.driver.unmount("data", "x")
    assert references(machine) == {"former x": 1}
    later(machine, 0)
    later(machine, GRACE_S)
    assert references(machine) == {}
    assert machine.mounter.entries == {}


def test_what_live_restore_has_kept_is_given_back_with_the_same_id(machine: Machine) -> None:
    """The new engine has neither mounted it nor forgotten its ID; `docker cp` mounts in between."""
    container(machine, "one", "x")
    killed_engine(machine)
    for count in (1, 2):  # another engine is killed meanwhile
        machine.engine = Engine(count + 2, 1)
        machine.living_engines = {machine.engine}
        machine.driver.mount("data", "x", machine.engine)
        assert references(machine) == {"x": 1, "former x": count}
        if count == 2:
            machine.driver.unmount("data", "x")
    machine.driver.unmount("data", "x")
    assert len(machine.mounter.entries) == 1
    machine.containers.running.clear()
    machine.driver.unmount("data", "x")
    assert references(machine) == {}
    assert machine.mounter.entries == {}


def test_mounts_of_one_engine_with_one_id_are_counted_together(machine: Machine) -> None:
    machine.driver.mount("data", "x", machine.engine)
    machine.driver.mount("data", "x", machine.engine)
    machine.driver.mount("data", "x", None)
    assert references(machine) == {"x": 3}


def test_clock_of_the_day_does_not_matter(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.driver.mount("data", "x", OLD)
    killed_engine(machine)
    later(machine, 0)
    for now in (0.0, 4e9, -1e9):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        later(machine, 1)
    assert references(machine) == {"x": 1}


def test_grace_begins_anew_with_the_driver(machine: Machine) -> None:
    machine.driver.mount("data", "x", OLD)
    killed_engine(machine)
    later(machine, 0)
    machine.now += GRACE_S
    machine.start()
    later(machine, 0)
    assert references(machine) == {"x": 1}
    later(machine, GRACE_S)
    assert references(machine) == {}


def test_mount_that_vanished_is_mounted_again(machine: Machine) -> None:
    container(machine, "one", "x")
    machine.mounter.detach_all()
    later(machine, 0)
    assert len(machine.mounter.entries) == 1
    assert references(machine) == {"x": 1}


def test_what_somebody_mounted_on_top_is_taken_off(machine: Machine) -> None:
    container(machine, "one", "x")
    mountpoint = machine.driver.get("data").mountpoint
    ours = machine.mounter.shown(mountpoint)
    machine.mounter.foreign[mountpoint] = Shown("8:9", "/else", "other")
    later(machine, 0)
    assert machine.mounter.shown(mountpoint) == ours


def test_next_container_is_never_given_what_somebody_mounted_on_top(machine: Machine) -> None:
    container(machine, "one", "x")
    mountpoint = machine.driver.get("data").mountpoint
    ours = machine.mounter.shown(mountpoint)
    machine.mounter.foreign[mountpoint] = Shown("8:9", "/else", "other")
    machine.driver.mount("data", "y", machine.engine)
    assert machine.mounter.shown(mountpoint) == ours


def test_directory_that_the_host_renamed_stays_mounted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel then shows another root for all of its mounts, in containers as well."""
    container(machine, "one", "x")
    mountpoint = machine.driver.get("data").mountpoint
    renamed = machine.mounter.shown(mountpoint)[0]._replace(root="/srv/data.old")
    machine.mounter._shown[mountpoint] = machine.containers.running["one"] = renamed
    machine.mounter.before_mount = lambda _: pytest.fail("mounted again")
    killed_engine(machine)
    later(machine, 0)
    later(machine, GRACE_S)
    assert machine.references.shown() == {"data": renamed}
    assert references(machine) == {"x": 1}
    machine.driver.mount("data", "y", NEW)


def test_mount_that_nobody_holds_is_unmounted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.driver.mount("data", "x", machine.engine)

    def locked(mountpoint: str) -> None:
        raise MountFailed("locked")

    with monkeypatch.context() as patch:
        patch.setattr(machine.mounter, "unmount", locked)
        with pytest.raises(MountFailed):
            machine.driver.unmount("data", "x")
        later(machine, 0)
    assert len(machine.mounter.entries) == 1
    later(machine, 0)
    assert machine.mounter.entries == {}


def test_reference_that_could_not_be_written_is_written_later(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StateUnavailable("database or disk is full")

    for mount_id in ("x", "x", "y"):
        machine.driver.mount("data", mount_id, OLD)
    with monkeypatch.context() as patch:
        patch.setattr(ReferenceStore, "set", full)
        for mount_id in ("x", "y"):
            machine.driver.unmount("data", mount_id)
    assert machine.references.load() == {"data": {"x": 2, "y": 1}}
    later(machine, 0)
    assert references(machine) == {"x": 1}
    assert machine.references.engines() == {("data", "x"): OLD}


def test_volume_removed_before_its_create_was_finished_stays_removed(machine: Machine) -> None:
    """The driver died in a Create, which is repeated as the first pass comes, and then undone by its user."""
    effective = dict(machine.driver.get("data").options.effective)
    machine.driver.remove("data")
    detail = {"options": effective, "created": utc_now().isoformat()}
    machine.references.intend(Intent("data", Verb.CREATE, detail))
    machine.start()
    with machine.driver._locks.held("data"), ThreadPoolExecutor(1) as other:
        other.submit(machine.reconciler.step).result(timeout=10)
    machine.driver.create("data", HOST)
    machine.driver.remove("data")
    machine.reconciler.step()
    assert machine.driver.list() == []
    assert machine.references.intents() == []


def test_volume_with_a_call_under_way_is_left_alone(machine: Machine) -> None:
    machine.driver.create("other", HOST)
    machine.driver.mount("other", "y", OLD)
    killed_engine(machine)
    later(machine, 0)
    entered, release = threading.Event(), threading.Event()

    def block(mountpoint: str) -> None:
        entered.set()
        assert release.wait(30)

    machine.mounter.before_mount = block
    with ThreadPoolExecutor(1) as pool:
        mounting = pool.submit(machine.driver.mount, "data", "x", NEW)
        assert entered.wait(30)
        later(machine, GRACE_S)
        assert machine.driver.get("other").references == {}
        release.set()
        mounting.result(30)
    assert references(machine) == {"x": 1}


def test_one_volume_that_cannot_be_mended_keeps_no_other_from_it(machine: Machine) -> None:
    machine.driver.create("another", HOST)
    for name in ("another", "data"):
        machine.driver.mount(name, "x", machine.engine)
    broken = machine.driver.get("another").mountpoint
    machine.mounter.detach_all()

    def fail(mountpoint: str) -> None:
        if mountpoint == broken:
            raise MountFailed("no")

    machine.mounter.before_mount = fail
    later(machine, 0)
    assert machine.mounter.entries.keys() == {machine.driver.get("data").mountpoint}


def export(server: str) -> dict[str, str]:
    return {"nfs_path": f"{server}:/data"}


def test_volume_of_a_dead_server_is_tried_again_after_1_2_4_and_5_minutes(machine: Machine) -> None:
    machine.driver.create("dead", export("nas"))
    machine.driver.mount("dead", "x", machine.engine)
    machine.mounter.detach_all()
    machine.mounter.silent.add("nas")
    tried: list[float] = []
    repair = machine.driver.repair

    def noted(name: str) -> None:
        tried.append(machine.now)
        repair(name)

    machine.driver.repair = noted  # type: ignore[method-assign]
    began = machine.now
    for _ in range(24):
        later(machine, 60)
    assert [(now - began) / 60 for now in tried] == [1, 2, 4, 8, 13, 18, 23]
    machine.mounter.silent.clear()
    for _ in range(5):
        later(machine, 60)
    assert machine.driver.get("dead").mountpoint in machine.mounter.entries
    machine.mounter.detach_all()
    later(machine, 0)
    assert machine.driver.get("dead").mountpoint in machine.mounter.entries, "what went well is not put off"


def test_servers_that_hang_keep_no_other_volume_from_being_mended(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are. Nor are their own volumes tried twice at a time."""
    monkeypatch.setattr("volumedriver.reconcile._PATIENCE_S", 0.01)
    names = [f"hangs{number}" for number in range(30)]
    for name in (*names, "good"):
        machine.driver.create(name, export(name))
    for name in (*names, "good", "data"):
        machine.driver.mount(name, "x", machine.engine)
    machine.mounter.detach_all()
    hanging = {machine.driver.get(name).mountpoint for name in names}
    release = threading.Event()
    tried: list[str] = []

    def hang(mountpoint: str) -> None:
        if mountpoint in hanging:
            tried.append(mountpoint)
            assert release.wait(30)

    machine.mounter.before_mount = hang
    mended = {machine.driver.get(name).mountpoint for name in ("good", "data")}
    later(machine, 0)
    wait_until(lambda: machine.mounter.entries.keys() == mended, "what does not hang")
    wait_until(lambda: len(tried) >= len(hanging), "what hangs to be tried")
    later(machine, 0)
    assert sorted(tried) == sorted(hanging)
    release.set()
    wait_until(lambda: machine.mounter.entries.keys() == mended | hanging, "the rest")
    machine.reconciler.end(10)


def test_nothing_more_is_begun_at_the_end(machine: Machine) -> None:
    for name in ("one", "two"):
        machine.driver.create(name, export("nas"))
        machine.driver.mount(name, "x", machine.engine)
    machine.mounter.detach_all()

    def end(_: str) -> None:
        with ThreadPoolExecutor(1) as other:
            other.submit(machine.reconciler.end, 0).result(timeout=10)

    machine.mounter.before_mount = end
    later(machine, 0)
    assert len(machine.mounter.entries) == 1


def test_who_has_a_directory_that_was_removed_is_told_for_as_long(machine: Machine) -> None:
    container(machine, "old", "x")
    mountpoint = machine.driver.get("data").mountpoint
    removed = machine.containers.running["old"] = machine.mounter.remove_directory(mountpoint)
    later(machine, 0)
    told = "the directory that these have mounted was removed on the host, restart them: process 7"
    assert machine.driver.get("data").stale == told
    assert machine.mounter.shown(mountpoint) == [removed], "only a Mount mounts it anew"
    container(machine, "new", "y")
    later(machine, 0)
    assert machine.driver.get("data").stale == told
    del machine.containers.running["old"]
    later(machine, 0)
    assert machine.driver.get("data").stale == ""


def test_who_has_what_a_server_does_not_know_any_more_is_told_for_as_long(machine: Machine) -> None:
    driver, mounter, running = machine.driver, machine.mounter, machine.containers.running

    def looked() -> str:
        later(machine, 0)
        return driver.get("far").stale

    driver.create("far", export("nas"))
    mountpoint = driver.mount("far", "x", machine.engine)
    (running["old"],) = mounter.shown(mountpoint)
    assert looked() == ""
    mounter.forget_exports()
    mounter.silent.add("nas")
    assert looked() == "", "a silent server has not said so"
    mounter.silent.clear()
    told = looked()
    assert told == "the server does not know any more what these have mounted, restart them: process 7"
    assert mounter.shown(mountpoint) == [running["old"]], "only a Mount mounts it anew"
    mounter.silent.add("nas")
    assert looked() == told, "nothing is known of it just now"
    mounter.silent.clear()
    del running["old"]
    assert looked() == ""


def test_timer_runs_at_once_notices_and_ends(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def step() -> None:
        steps.append("step")
        raise ValueError("must not end the timer")

    threads = threading.active_count()
    monkeypatch.setattr(machine.reconciler, "step", step)
    monkeypatch.setattr(machine.reconciler, "notice", lambda: steps.append("notice"))
    monkeypatch.setattr("volumedriver.reconcile._NOTICE_S", 0.001)
    timer = Timer(machine.reconciler, 0)
    timer.start()
    wait_until(lambda: len(steps) > 5, "the timer to run")
    timer.stop()
    assert steps[:4] == ["notice", "step", "notice", "notice"], "with an interval of 0 it runs once"
    assert steps.count("step") == 1
    often = Timer(machine.reconciler, 0.001)
    often.start()
    wait_until(lambda: steps.count("step") > 3, "the timer to run again")
    often.stop()
    assert threading.active_count() == threads


def test_engine_is_told_from_another_process_with_its_number() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        engine = engine_of(process.pid)
        assert engine is not None
        assert is_alive(engine)
        assert not is_alive(engine._replace(started=engine.started - 1))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(engine), "a zombie mounts nothing"
        process.communicate()
    assert engine_of(process.pid) is None
    assert engine_of(0) is None


def test_a_pass_over_nothing_does_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    Reconciler(machine.driver, machine.parts).step()
    machine.stop()
