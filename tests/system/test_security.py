"""The real plugin beside containers: what its sidecar may do, who can replace its socket, and what a part is."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.engine import Engine, inside
from lab.images import TASK, TINY, USER
from lab.stage import PLUGIN
from sidecar.__main__ import CAPABILITIES

CLIENT = "/run/brokervol/brokervol"
CURL = ("curl", "-sS", "--unix-socket", "/run/brokervol/broker.sock")
BROKER = {"broker": {"bind": "/run/brokervol", "mode": "rw"}}
CAP_SYS_ADMIN = 21


class Site:
    """A host directory as volume `data`, and the sidecar's volume `broker`."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        self.create("data", type="host", host_path=str(directory))
        self.create("broker", type="sidecar")

    def create(self, name: str, **options: str) -> None:
        self.engine.client.volumes.create(name, driver=PLUGIN, driver_opts=options)

    def task(self, image: str = TASK, **options: Any) -> Any:
        """A container that stays, as a context manager."""
        return self.engine.running(image, "sleep", "1000", init=True, **options)

    def pid(self, module: str) -> int:
        """Of the plugin's process that runs a module."""
        (found,) = [
            pid
            for pid in self.engine.plugin_pids(PLUGIN)
            if ["-m", module] == Path(f"/proc/{pid}/cmdline").read_text().split("\0")[2:4]
        ]
        return found


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    directory = Path(f"/srv/brokervol-security-{os.getpid()}")
    (directory / "sub" / "deep").mkdir(parents=True)
    try:
        yield Site(engine, directory)
    finally:
        for container in engine.client.containers.list(all=True):
            container.remove(force=True)
        for found in sorted(directory.rglob("*"), key=lambda path: len(path.parts), reverse=True):
            found.rmdir() if found.is_dir() else found.unlink()
        directory.rmdir()


def ask(container: Any, path: str, *, user: int = 0) -> Any:
    exit_code, output = inside(container, *CURL, f"http://b{path}", user=str(user))
    assert exit_code == 0, output
    return json.loads(output)


# The sidecar's privileges


def test_the_sidecar_of_the_plugin_has_only_what_it_needs(site: Site) -> None:
    with site.task(volumes={**BROKER, "data": {"bind": "/data", "mode": "rw"}}) as container:
        assert inside(container, CLIENT, "ls", "data:", user=str(USER)).exit_code == 0
    sidecar, driver = site.pid("sidecar"), site.pid("volumedriver")
    kept = CAPABILITIES["caller"]
    threads = list(Path(f"/proc/{sidecar}/task").glob("*/status"))
    assert len(threads) > 1
    for thread in threads:
        status = dict(line.split(":\t", 1) for line in thread.read_text().splitlines())
        held = {name: int(status[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Bnd", "Inh", "Amb")}
        assert held == {"Eff": kept, "Prm": kept, "Bnd": kept, "Inh": 0, "Amb": 0}
        assert status["NoNewPrivs"].strip() == "1"
    assert resource.prlimit(sidecar, resource.RLIMIT_CORE) == (1, 1)
    lines = Path(f"/proc/{driver}/status").read_text().splitlines()
    effective = next(line for line in lines if line.startswith("CapEff:"))
    assert int(effective.split()[1], 16) >> CAP_SYS_ADMIN & 1, "the driver, which mounts, is another process"


# Its socket


def test_the_directory_of_the_socket_can_be_written_by_no_task(site: Site) -> None:
    """Mounted `rw`, by root: the volume itself is read-only, and a container cannot make it writable."""
    attempts = (
        "touch /run/brokervol/x",
        "rm -f /run/brokervol/broker.sock",
        "mv /run/brokervol/broker.sock /run/brokervol/y",
        "ln -s /tmp /run/brokervol/x",
        "chmod 777 /run/brokervol",
        "sh -c 'echo evil > /run/brokervol/brokervol'",
        "mount -o remount,rw /run/brokervol",
        "mount -o remount,bind,rw /run/brokervol",
        "mount -t tmpfs none /run/brokervol",
        "umount /run/brokervol",
    )
    for user in ("0", str(USER)):
        with site.task(TINY, volumes=BROKER) as container:
            before = inside(container, "ls", "-ln", "/run/brokervol", user=user)
            for attempt in attempts:
                exit_code, output = inside(container, "sh", "-c", attempt, user=user)
                assert exit_code != 0, attempt
                assert "Read-only file system" in output or "ermi" in output or "denied" in output, output
            assert inside(container, "ls", "-ln", "/run/brokervol", user=user) == before


# Parts


def test_a_container_with_a_directory_of_a_volume_has_that_part(site: Site) -> None:
    """As `--mount volume-subpath=sub` (engine 26 and later) mounts it: from the volume's own mountpoint."""
    site.directory.chmod(0o777)
    (site.directory / "outside").write_text("x")
    (site.directory / "sub" / "inside").write_text("x")
    (site.directory / "sub").chmod(0o777)
    with site.task(volumes={**BROKER, "data": {"bind": "/data", "mode": "rw"}}) as whole:
        (volume,) = {
            mount.mountpoint
            for mount in site.engine.mounts()
            if "/propagated-mount/volumes/" in mount.mountpoint and mount.root == str(site.directory)
        }
        for source, mode in ((f"{volume}/sub", "rw"), (str(site.directory / "sub"), "ro")):
            volumes = {**BROKER, source: {"bind": "/data", "mode": mode}}
            with site.task(volumes=volumes) as part:
                (found,) = ask(part, "/v1/workspaces", user=USER)["workspaces"]
                assert (found["name"], found["volume_path"], found["read_only"]) == ("data", "/data", mode == "ro")
                listed = ask(part, "/v1/workspaces/data/files?recursive=true", user=USER)["files"]
                assert [file["file"] for file in listed] == ["inside"]
                copied = inside(part, CLIENT, "cp", "/etc/hostname", "data:new", user=str(USER))
                assert copied.exit_code == (0 if mode == "rw" else 4)
                assert inside(part, CLIENT, "stat", "data:outside", user=str(USER)).exit_code == 3
                if mode == "rw":
                    records = ask(part, "/v1/workspaces/data/catalog", user=USER)["files"]
                    assert [record["file_path"] for record in records] == ["new"]
                    records = ask(whole, "/v1/workspaces/data/catalog?file_path=sub/new")["files"]
                    assert [record["is_deleted"] for record in records] == [False]
                    assert inside(part, CLIENT, "rm", "data:new", user=str(USER)).exit_code == 0
