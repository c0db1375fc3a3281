"""The driver on the kernel's own mounts, killed or failing at every step of every verb, and started again.

What the next start finds must be as before the verb or as after it, never between (docs/recovery.md).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.driver_steps import Steps, killed_at
from lab.memory_driver import Machine
from lab.namespaces import in_private_namespace
from volumedriver.driver import Driver
from volumedriver.engines import Engine
from volumedriver.errors import DriverError
from volumedriver.mounter import KernelMounter

pytestmark = pytest.mark.root

NEW = {"host_path": "/srv/made/new", "create": "true"}
MOST_STEPS = 60

Act = Callable[[Driver], object]

# What is done before the verb, and the verb.
VERBS: dict[str, tuple[Act | None, Act]] = {
    "create": (None, lambda driver: driver.create("new", NEW)),
    "first mount": (None, lambda driver: driver.mount("data", "x")),
    "mount of a token": (None, lambda driver: driver.mount("bucket", "x")),
    "mount for another": (lambda driver: driver.mount("data", "x"), lambda driver: driver.mount("data", "y")),
    "mount with the same ID": (lambda driver: driver.mount("data", "x"), lambda driver: driver.mount("data", "x")),
    "mount by the next engine": (
        lambda driver: driver.mount("data", "x", Engine(1, 1)),
        lambda driver: driver.mount("data", "x", Engine(2, 1)),
    ),
    "last unmount": (lambda driver: driver.mount("data", "x"), lambda driver: driver.unmount("data", "x")),
    "unmount": (
        lambda driver: (driver.mount("data", "x"), driver.mount("data", "y")),
        lambda driver: driver.unmount("data", "x"),
    ),
    "remove": (None, lambda driver: driver.remove("data")),
    "remove with a reference of a killed engine": (
        lambda driver: driver.mount("data", "x"),
        lambda driver: driver.remove("data"),
    ),
}


HALVES: dict[str, object] = {
    # It has found out that nobody holds the volume, which stays, without references.
    "remove with a reference of a killed engine": {"bucket": {}, "data": {}},
    # It has found out that the first engine is dead.
    "mount by the next engine": {"bucket": {}, "data": {"former x": 1}},
}


class Site:
    """A machine with the kernel's mounter, brought back to the same beginning for every step."""

    def __init__(self, directory: Path, before: Act | None) -> None:
        # Not a disk: thousands of starts would wait for it.
        subprocess.run(["mount", "-t", "tmpfs", "site", str(directory)], check=True)
        self.machine = Machine(directory, KernelMounter())
        self._before = before
        (self.machine.hostfs / "srv/data/file").write_text("content")

    def begin(self) -> None:
        driver = self.machine.start()
        for volume in driver.list():
            driver.remove(volume.name)
        for path in ("srv/made/new", "srv/made"):
            if (self.machine.hostfs / path).exists():
                (self.machine.hostfs / path).rmdir()
        driver.create("data", {"host_path": "/srv/data"})
        driver.create("bucket", {"bucket_name": "imagery"})
        if self._before is not None:
            self._before(driver)

    def state(self) -> dict[str, dict[str, int]]:
        """Volumes with their references, after what must hold at any time was looked at."""
        machine = self.machine
        driver = machine.driver
        volumes = {volume.name: dict(volume.references) for volume in driver.list()}
        assert {definition.name for definition in machine.definitions.load()} == volumes.keys()
        assert machine.references.load() == {name: counts for name, counts in volumes.items() if counts}
        assert machine.references.intents() == []
        mounted = {driver.get(name).mountpoint for name, counts in volumes.items() if counts}
        assert {*machine.parts.mounter.mountpoints(str(machine.root / "volumes"))} == mounted
        assert {str(path) for path in (machine.root / "volumes").iterdir()} == mounted
        assert (machine.hostfs / "srv/data/file").read_text() == "content"
        assert (machine.hostfs / "srv/made").exists() == ("new" in volumes), "a directory without its volume"
        return volumes

    def expected(self, verb: Act) -> list[object]:
        """The state before the verb and after it."""
        self.begin()
        before = self.state()
        verb(self.machine.driver)
        after = self.state()
        return [before, after]


def restart(machine: Machine) -> None:
    machine.start()
    machine.reconciler.step()


def restarted(site: Site) -> object:
    restart(site.machine)
    return site.state()


@pytest.mark.parametrize("name", VERBS)
@in_private_namespace
def test_kill_at_any_step_is_finished_or_undone(tmp_path: Path, name: str) -> None:
    """Also where the start after it is killed in turn."""
    before, verb = VERBS[name]
    site = Site(tmp_path, before)
    machine = site.machine
    expected = [*site.expected(verb), HALVES.get(name)]
    for number in range(1, MOST_STEPS):
        site.begin()
        machine.stop()
        if not killed_at(number, machine.start, lambda: verb(machine.driver)):
            break
        for again in range(1, MOST_STEPS):
            if not killed_at(again, lambda: None, lambda: restart(machine)):
                break
        assert restarted(site) in expected
        assert restarted(site) in expected, "a second start changed something"
    assert 1 < number < MOST_STEPS - 1
    machine.stop()


@pytest.mark.parametrize("name", VERBS)
@in_private_namespace
def test_failure_at_any_step_leaves_the_state_before_or_after(tmp_path: Path, name: str) -> None:
    """A full disk, a mount that the kernel refuses: told in a sentence, and what is left is mended."""
    before, verb = VERBS[name]
    site = Site(tmp_path, before)
    machine = site.machine
    expected = [*site.expected(verb), HALVES.get(name)]
    for number in range(1, MOST_STEPS):
        site.begin()
        steps = Steps(number, is_kill=False)
        with steps.in_place():
            failed = _failed(lambda: verb(machine.driver))
        if not steps.is_reached:
            break
        machine.reconciler.step()
        volumes = {volume.name: dict(volume.references) for volume in machine.driver.list()}
        assert volumes in expected
        if not failed:
            assert volumes == expected[1], f"step {number}, {steps.taken[-1]}: success was told"
        assert restarted(site) == volumes
    assert 1 < number < MOST_STEPS - 1
    machine.stop()


def _failed(act: Callable[[], object]) -> bool:
    try:
        act()
    except DriverError:
        return True
    return False
