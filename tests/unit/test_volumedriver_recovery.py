"""The cases of volumedriver.recovery, one row each."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.memory_driver import Machine
from volumedriver.errors import MountFailed, VolumeNotFound
from volumedriver.recovery import Plan, decide

DEFINED = {"data": "/v/1", "data2": "/v/2"}
HELD = {"data": {"x": 2, "y": 1}}
NOBODY = "nobody holds a reference to it"
UNDEFINED = "no volume with this mountpoint is defined"

NOT_HELD = "it is not mounted any more, and no process has it"

# The numbers are those of docs/recovery.md: references, what is mounted, what is held, whether rebooted.
CASES = {
    "1 rebooted": (HELD, set(), {"data"}, True, Plan(dropped={"data": "the machine was restarted"})),
    "1 rebooted, yet mounted": (
        HELD,
        {"/v/1"},
        set(),
        True,
        Plan(dropped={"data": "the machine was restarted"}, unmounted={"/v/1": NOBODY}),
    ),
    "2 referenced, not mounted": (HELD, set(), set(), False, Plan(dropped={"data": NOT_HELD})),
    "3 referenced and mounted": (HELD, {"/v/1"}, set(), False, Plan(adopted={"data": {"x": 2, "y": 1}})),
    "4 referenced and held": (HELD, set(), {"data"}, False, Plan(adopted={"data": {"x": 2, "y": 1}})),
    "5 mounted, not referenced": ({}, {"/v/1"}, set(), False, Plan(unmounted={"/v/1": NOBODY})),
    "6 mounted, not defined": ({}, {"/v/9"}, set(), False, Plan(unmounted={"/v/9": UNDEFINED})),
    "6 referenced, not defined": (
        {"gone": {"x": 1}},
        {"/v/9"},
        {"gone"},
        False,
        Plan(dropped={"gone": "no volume of this name is defined"}, unmounted={"/v/9": UNDEFINED}),
    ),
    "defined only": ({}, set(), set(), False, Plan()),
    "several at once": (
        {**HELD, "data2": {"z": 1}},
        {"/v/2", "/v/9"},
        set(),
        False,
        Plan(
            adopted={"data2": {"z": 1}},
            dropped={"data": NOT_HELD},
            unmounted={"/v/9": UNDEFINED},
        ),
    ),
}


@pytest.mark.parametrize(("references", "mounted", "held", "has_rebooted", "plan"), CASES.values(), ids=CASES)
def test_decision(
    references: dict[str, dict[str, int]], mounted: set[str], held: set[str], has_rebooted: bool, plan: Plan
) -> None:
    assert decide(DEFINED, references, mounted, held, has_rebooted=has_rebooted) == plan


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def mounted_volume(machine: Machine, name: str = "data") -> str:
    machine.driver.create(name, {"host_path": "/srv/data"})
    return machine.driver.mount(name, "x")


def test_restart_adopts_and_a_second_restart_changes_nothing(machine: Machine) -> None:
    mountpoint = mounted_volume(machine)
    machine.driver.mount("data", "x")
    for _ in range(2):
        driver = machine.start()
        assert driver.get("data").references == {"x": 2}
        assert machine.mounter.entries.keys() == {mountpoint}
    machine.stop()


def test_reboot_drops_references_once(machine: Machine) -> None:
    mounted_volume(machine)
    machine.mounter.entries.clear()
    machine.boot_id = "second boot"
    driver = machine.start()
    assert driver.get("data").references == {}
    driver.mount("data", "x")
    assert machine.start().get("data").references == {"x": 1}
    machine.stop()


def test_lost_definitions_leave_no_mount(machine: Machine) -> None:
    mounted_volume(machine)
    machine.definitions.remove("data")
    driver = machine.start()
    assert machine.mounter.entries == {}
    assert machine.references.load() == {}
    with pytest.raises(VolumeNotFound):
        driver.get("data")
    machine.stop()


def test_leftover_mountpoints_go_only_if_empty(machine: Machine) -> None:
    volumes = machine.root / "volumes"
    (volumes / "empty").mkdir()
    (volumes / "used").mkdir()
    (volumes / "used/file").write_text("keep")
    (volumes / "file").write_text("keep")
    machine.start()
    assert sorted(path.name for path in volumes.iterdir()) == ["file", "used"]
    machine.stop()


def test_mount_that_cannot_be_undone_does_not_keep_the_driver_from_starting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted_volume(machine)
    machine.references.drop("data")

    def locked(mountpoint: str) -> None:
        raise MountFailed(mountpoint)

    monkeypatch.setattr(machine.mounter, "unmount", locked)
    assert machine.start().get("data").references == {}
    machine.stop()
