"""What becomes of volumes in use when something is killed, stopped or replaced: ours beside the engine's own.

With real containers in a real engine. The table is printed, and stands in docs/recovery.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from docker.errors import APIError
from docker.models.containers import Container

from lab import uml
from lab.engine import Engine, inside, wait_until
from lab.images import TINY
from lab.namespaces import Host
from lab.stage import PLUGIN, stage
from lab.volume_driver import driver_on

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/recovery.md").read_text()
FAST = {"BROKERVOL_RECONCILE_S": "1", "BROKERVOL_REFERENCE_GRACE_S": "1"}


class Outcome(NamedTuple):
    """What became of a volume."""

    running: str  # the container that had it
    new: str  # a container started afterwards
    removal: str
    left: str

    def __str__(self) -> str:
        return "; ".join(self)


class Site:
    """An engine with a directory of the host as a volume of ours and of the engine's own, each in a container."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        client = engine.client
        client.volumes.create("ours", driver=PLUGIN, driver_opts={"host_path": str(directory)})
        bind = {"type": "none", "o": "bind", "device": str(directory)}
        client.volumes.create("local", driver="local", driver_opts=bind)
        self.containers = {name: self._started(name) for name in ("ours", "local")}

    def _started(self, name: str) -> str:
        container = self.engine.client.containers.create(
            TINY, ["sleep", "1000"], volumes=self._volumes(name), network_mode="none", stop_signal="SIGKILL"
        )
        container.start()
        return str(container.id)

    def _volumes(self, name: str) -> dict[str, dict[str, str]]:
        return {name: {"bind": "/data", "mode": "rw"}}

    def outcome(self, name: str) -> Outcome:
        container = self.engine.client.containers.get(self.containers[name])
        running = "reads on" if _reads(container) else f"{container.status}"
        code, output = self.engine.run(TINY, "cat", "/data/file", volumes=self._volumes(name))
        new = "reads" if (code, output) == (0, "content") else f"fails: {output}"
        container.remove(force=True)
        left = "nothing left"
        if not wait_until_or_not(lambda: not self._mounts(name)):
            left = f"left mounted: {len(self._mounts(name))}"
        try:
            self.engine.client.volumes.get(name).remove()
        except APIError as error:
            return Outcome(running, new, f"not removed: {error.explanation}", left)
        return Outcome(running, new, "removed", left)

    def _mounts(self, name: str) -> set[str]:
        place = "/propagated-mount/volumes/" if name == "ours" else f"/volumes/{name}/_data"
        return {mount.mountpoint for mount in self.engine.mounts() if place in mount.mountpoint}

    @property
    def state(self) -> Path:
        """The driver's, as the host has it."""
        identity: str = self.engine.client.plugins.get(PLUGIN).id  # type: ignore[no-untyped-call]
        return self.engine.directory / "data/plugins" / identity / "propagated-mount/.state"


def _reads(container: Container) -> bool:
    return container.status == "running" and inside(container, "cat", "/data/file") == (0, "content")


def wait_until_or_not(condition: Callable[[], bool]) -> bool:
    try:
        wait_until("", condition, 20)
    except AssertionError:
        return False
    return True


@pytest.fixture(scope="module")
def quick_engine() -> Iterator[Engine]:
    with stage(settings=FAST) as engine:
        yield engine


@pytest.fixture
def directory() -> Iterator[Path]:
    found = Path(f"/srv/brokervol-scenarios-{os.getpid()}")
    found.mkdir()
    (found / "file").write_text("content")
    yield found
    assert [path.name for path in found.iterdir()] == ["file"]
    (found / "file").unlink()
    found.rmdir()


def plugin_killed(site: Site) -> None:
    site.engine.kill_plugin(PLUGIN)


def engine_killed(site: Site) -> None:
    site.engine.kill()
    site.engine.start()


def engine_restarted(site: Site) -> None:
    site.engine.restart()


def disabled_by_force(site: Site) -> None:
    plugin = site.engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    plugin.disable(force=True)
    plugin.enable(timeout=30)


def upgraded(site: Site) -> None:
    """As `docker plugin upgrade` does to a disabled plugin: its files are others, the propagated mount stays."""
    plugin = site.engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    plugin.disable(force=True)
    files = site.state.parents[1] / "rootfs"
    newer = files.with_name("newer")
    subprocess.run(["cp", "-a", str(files), str(newer)], check=True)
    files.rename(files.with_name("older"))
    newer.rename(files)
    plugin.enable(timeout=30)


def power_cut(site: Site) -> None:
    """Engine and plugin end at once, and what the driver wrote last is torn."""
    site.engine.client.volumes.create("last", driver=PLUGIN, driver_opts={"host_path": str(site.directory)})
    pids, state = site.engine.plugin_pids(PLUGIN), site.state
    site.engine.kill()
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none may see another's end, and end orderly itself
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    for file in ("definitions.sqlite", "mounts.sqlite-wal"):
        os.truncate(state / file, max(0, (state / file).stat().st_size - 1000))
    site.engine.start()
    assert {volume.name for volume in site.engine.client.volumes.list()} == {"ours", "local", "last"}
    site.engine.client.volumes.get("last").remove()


# What happens, whether with live-restore, and whether it happens to the engine's own driver too.
SCENARIOS: dict[str, tuple[Callable[[Site], None], bool, bool]] = {
    "plugin killed": (plugin_killed, False, False),
    "engine killed": (engine_killed, False, True),
    "engine restarted": (engine_restarted, False, True),
    "engine killed, live-restore": (engine_killed, True, True),
    "plugin disabled by force, enabled": (disabled_by_force, False, False),
    "plugin upgraded": (upgraded, False, False),
    "power cut, last write torn": (power_cut, False, True),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(quick_engine: Engine, directory: Path, name: str, told: Callable[[str], None]) -> None:
    happens, live_restore, concerns_local = SCENARIOS[name]
    if quick_engine.live_restore is not live_restore:
        quick_engine.live_restore = live_restore
        quick_engine.restart()
    site = Site(quick_engine, directory)
    happens(site)
    ours, local = site.outcome("ours"), site.outcome("local")
    row = f"| {name} | {ours} | {local if concerns_local else 'not concerned'} |"
    told(row)
    assert (ours.new, ours.removal, ours.left) == ("reads", "removed", "nothing left")
    assert row in PAGE


def test_machine_rebooted(directory: Path, tmp_path: Path, told: Callable[[str], None]) -> None:
    """Another kernel, with the state of a driver that was killed: another boot id, and all mounts are gone."""
    host = Host(tmp_path / "host")
    (host.files / "srv/data").mkdir(parents=True)
    options = {"host_path": "/srv/data"}
    with driver_on(host) as driver:
        driver.done("Create", Name="ours", Opts=options)
        driver.mount("ours", "x")
        driver.process.kill()
    root, files = tmp_path / "root", tmp_path / "host-files"
    for source, copy in ((host.files / "root/.state", root / ".state"), (host.files / "srv", files / "srv")):
        shutil.copytree(source, copy)
    (files / "srv/data/file").write_text("content")
    host.close()
    with uml.Machine(_rebooted(root, files)).ran(120) as out:
        result = out / "result"
        assert result.exists(), "the machine did not come to its end"
        found = json.loads(result.read_text())
    outcome = Outcome(found["running"], found["new"], found["removal"], found["left"])
    row = f"| machine rebooted | {outcome} | as ours |"
    told(row)
    assert found["dropped"] == "the machine was restarted"
    assert (outcome.new, outcome.removal, outcome.left) == ("reads", "removed", "nothing left")
    assert row in PAGE


def _rebooted(root: Path, files: Path) -> str:
    paths = os.pathsep.join(str(ROOT / source) for source in ("daemon", "plugin", "tests"))
    program = shlex.join([sys.executable, str(ROOT / "tests/lab/after_reboot.py"), str(root), str(files)])
    place, environment = shlex.quote(str(ROOT)), f"PYTHONPATH={shlex.quote(paths)}"
    return f"cd {place}; ip link set lo up; {environment} {program} > {uml.OUT}/result"
