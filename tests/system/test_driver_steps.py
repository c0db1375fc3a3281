"""The driver of the real plugin, killed at each step of what a real engine asks of it (docs/recovery.md).

The supervisor starts it again; the engine repeats the call that was cut, without its body, and tells the caller
of the refusal. What is found then is as before the call or as after it, the files are as they were, all goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker.errors import APIError

import build
from lab import fragile_driver
from lab.engine import Engine, wait_until
from lab.images import TINY

# Steps of the driver in the order that they are taken in: all there are, for a volume of a directory that `create`
# makes, one container, and no other volume. Every one is reached through the engine.
STEPS = {
    "create": (
        "ReferenceStore.intend",
        "openat2",
        "openat2 (2)",
        "openat2 (3)",
        "os.mkdir",
        "openat2 (4)",
        "DefinitionStore.add",
        "ReferenceStore.settle",
        "answer",
    ),
    "mount": (
        "ReferenceStore.intend",
        "openat2",
        "os.mkdir",
        "open_tree",
        "mount_setattr",
        "move_mount",
        "ReferenceStore.set_shown",
        "ReferenceStore.set",
        "ReferenceStore.settle",
        "answer",
    ),
    "unmount": ("ReferenceStore.set", "umount2", "os.rmdir", "answer"),
    "remove": ("os.rmdir", "ReferenceStore.drop", "DefinitionStore.remove", "answer"),
}
# The engine counts no such mount and never asks for its end; but it lives, and so the reference is kept (case 15
# of docs/recovery.md) until the volume is removed.
STAYS_MOUNTED = {
    "mount: ReferenceStore.settle": "the reference is recorded, and the engine has had no answer",
    "mount: answer": "the reference is recorded, and the engine has had no answer",
    "unmount: ReferenceStore.set": "nothing is recorded, and the engine does not ask again",
}
FRAGILE = "brokervol-fragile"
FAST = {"BROKERVOL_RECONCILE_S": "1", "BROKERVOL_REFERENCE_GRACE_S": "1"}
CUT = "has no body"  # what the engine is answered to its repetition


class Site:
    """A volume `data`, which may be there or not, of a directory with one file, and the driver."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        identity: str = engine.client.plugins.get(FRAGILE).id  # type: ignore[no-untyped-call]
        self._root = engine.directory / "data/plugins" / identity / "propagated-mount"
        self.steps = self._root / fragile_driver.DIRECTORY

    def create(self) -> None:
        options = {"host_path": str(self.directory), "create": "true"}
        self.engine.client.volumes.create("data", driver=FRAGILE, driver_opts=options)

    def run(self) -> None:
        volumes = {"data": {"bind": "/data", "mode": "rw"}}
        assert self.engine.run(TINY, "cat", "/data/file", volumes=volumes) == (0, "content")

    def remove(self) -> None:
        self.engine.client.volumes.get("data").remove()

    def volumes(self) -> set[str]:
        """As `docker volume ls` tells them."""
        found = self.engine.client.volumes.list(filters={"driver": f"{FRAGILE}:latest"})
        return {str(volume.name) for volume in found}

    def mounted(self) -> set[str]:
        """What the host has of the plugin."""
        places = {mount.mountpoint for mount in self.engine.mounts()}
        return {place for place in places if "/propagated-mount/volumes/" in place}

    def files(self) -> dict[str, str]:
        """Of the directory, and what is in them; empty too where there is none."""
        return {path.name: path.read_text() for path in self.directory.glob("*")}

    def processes(self) -> dict[str, list[int]]:
        """The plugin's pids by what they run."""
        found: dict[str, list[int]] = {}
        for pid in self.engine.plugin_pids(FRAGILE):
            with contextlib.suppress(OSError):  # ended meanwhile
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "-m" in words:  # who is ending has no words any more
                    found.setdefault(" ".join(filter(None, words[words.index("-m") + 1 :][:2])), []).append(pid)
        return found

    def driver(self) -> int:
        """Its pid, once it has one and it is the only one."""

        def found() -> int | None:
            pids = self.processes().get("lab.fragile_driver", [])
            return pids[0] if len(pids) == 1 else None

        pid: int = wait_until("one driver", found)
        return pid

    @contextlib.contextmanager
    def killed_at(self, step: str) -> Iterator[None]:
        """The driver kills itself once, at that step of the block, and is started again."""
        before = self.driver()
        (self.steps / fragile_driver.OBEYED).unlink(missing_ok=True)
        (self.steps / fragile_driver.ORDER).write_text(step)
        yield
        wait_until(f"the driver kills itself at {step}", (self.steps / fragile_driver.OBEYED).exists)
        wait_until("another driver", lambda: self.driver() != before)

    def left(self) -> list[object]:
        """What must not be there once the volume is removed."""
        state = f"file:{self._root}/.state/mounts.sqlite?mode=ro"
        with contextlib.closing(sqlite3.connect(state, uri=True)) as connection:
            rows = [
                row
                for table in ("intents", "mount_references")
                for row in connection.execute(f"SELECT * FROM {table}")  # noqa: S608  # one of these two
            ]
        return [*rows, *self.mounted(), *(self._root / "volumes").iterdir()]


@pytest.fixture(scope="module")
def fragile_engine(shared_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine of all tests, with the fragile plugin beside the real one."""
    client = shared_engine.client
    archive = fragile_driver.plugin_archive(build.build(client), tmp_path_factory.mktemp("plugin"))
    plugin = build.create(client, FRAGILE, archive)
    archive.unlink()  # pytest would keep its 130 MB
    build.enable(plugin, FAST)
    yield shared_engine
    plugin.disable()
    plugin.remove()


@pytest.fixture
def site(fragile_engine: Engine) -> Iterator[Site]:
    directory = Path(f"/srv/brokervol-steps-{os.getpid()}")
    found = Site(fragile_engine, directory)
    yield found
    if found.volumes():
        found.remove()
    (directory / "file").unlink(missing_ok=True)
    if directory.exists():
        directory.rmdir()


def write_file(site: Site) -> None:
    (site.directory / "file").write_text("content")


def test_these_are_all_steps(site: Site) -> None:
    site.create()
    write_file(site)
    site.run()
    wait_until("the volume is unmounted", lambda: not site.mounted())
    site.remove()
    taken = {verb: tuple(json.loads((site.steps / verb).read_text())) for verb in fragile_driver.VERBS}
    assert taken == STEPS


def create_cut(site: Site, step: str) -> None:
    with site.killed_at(f"create: {step}"), pytest.raises(APIError, match=CUT):
        site.create()
    is_begun = step != STEPS["create"][0]
    wait_until("what was begun is finished", lambda: site.volumes() == ({"data"} if is_begun else set()))
    assert site.files() == {}
    site.create()
    write_file(site)


def mount_cut(site: Site, step: str) -> None:
    site.create()
    write_file(site)
    with site.killed_at(f"mount: {step}"), pytest.raises(APIError, match=CUT):
        site.run()


def unmount_cut(site: Site, step: str) -> None:
    site.create()
    write_file(site)
    with site.killed_at(f"unmount: {step}"):
        site.run()


def remove_cut(site: Site, step: str) -> None:
    site.create()
    write_file(site)
    with site.killed_at(f"remove: {step}"), pytest.raises(APIError, match=CUT):
        site.remove()
    assert site.volumes() == (set() if step == "answer" else {"data"})
    site.create()


CUTS: dict[str, Callable[[Site, str], None]] = {
    "create": create_cut,
    "mount": mount_cut,
    "unmount": unmount_cut,
    "remove": remove_cut,
}


@pytest.mark.parametrize(("verb", "step"), [(verb, step) for verb, steps in STEPS.items() for step in steps])
def test_plugin_killed_at_a_step_in_a_real_engine(site: Site, verb: str, step: str) -> None:
    processes = {name: len(pids) for name, pids in site.processes().items()}
    CUTS[verb](site, step)
    assert site.files() == {"file": "content"}
    assert site.volumes() == {"data"}
    site.run()
    if f"{verb}: {step}" in STAYS_MOUNTED:
        assert len(site.mounted()) == 1
    else:
        wait_until("the volume is unmounted", lambda: not site.mounted())
    site.remove()
    assert site.volumes() == set()
    assert site.left() == []
    assert site.files() == {"file": "content"}
    assert {name: len(pids) for name, pids in site.processes().items()} == processes
