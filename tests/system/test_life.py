"""The life of the plugin in a real engine: crashes, disabling, copies, and many at once (ENGINE.md)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.engine import Engine, inside, wait_until
from lab.images import TINY
from lab.stage import PLUGIN
from storage.mountinfo import Mount

SLEEP = ("sleep", "1000")


class Site:
    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        (directory / "f").write_text("content")
        engine.client.volumes.create("data", driver=PLUGIN, driver_opts={"host_path": str(directory)})
        self.volumes = {"data": {"bind": "/data", "mode": "rw"}}

    def published(self) -> list[Mount]:
        """What the plugin has mounted, as its host sees it, each once (a shared root shows it twice)."""
        found = {
            mount.mountpoint: mount
            for mount in self.engine.mounts()
            if "/propagated-mount/volumes/" in mount.mountpoint
        }
        return list(found.values())

    def reads(self) -> None:
        """A new container reads the file."""
        assert self.engine.run(TINY, "cat", "/data/f", volumes=self.volumes) == (0, "content")


@pytest.fixture
def directory() -> Iterator[Path]:
    found = Path(f"/srv/brokervol-life-{os.getpid()}")
    found.mkdir()
    yield found
    for path in found.iterdir():
        path.unlink()
    found.rmdir()


@pytest.fixture
def site(engine: Engine, directory: Path) -> Site:
    return Site(engine, directory)


def test_the_last_container_unmounts_and_not_before(site: Site) -> None:
    first = site.engine.running(TINY, *SLEEP, volumes=site.volumes)
    second = site.engine.running(TINY, *SLEEP, volumes=site.volumes)
    with second as kept:
        with first:
            assert len(site.published()) == 1
        assert len(site.published()) == 1
        assert inside(kept, "cat", "/data/f") == (0, "content")
    wait_until("the volume is unmounted", lambda: site.published() == [])
    assert (site.directory / "f").read_text() == "content"


def test_docker_cp_on_a_running_container_keeps_its_mount(site: Site) -> None:
    """The engine mounts and unmounts again with the container's own ID."""
    with site.engine.running(TINY, *SLEEP, volumes=site.volumes) as container:
        for _ in range(3):
            stream, _ = container.get_archive("/data/f")
            assert b"content" in b"".join(stream)
            assert len(site.published()) == 1
        site.reads()
        assert inside(container, "cat", "/data/f") == (0, "content")
    wait_until("the volume is unmounted", lambda: site.published() == [])


def test_many_containers_at_once_share_one_mount(site: Site) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            site.reads()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    wait_until("the volume is unmounted", lambda: site.published() == [])


def test_kill_of_the_plugin_with_a_container_running(site: Site) -> None:
    with site.engine.running(TINY, *SLEEP, volumes=site.volumes) as container:
        site.engine.kill_plugin(PLUGIN)
        assert inside(container, "cat", "/data/f") == (0, "content")
        assert len(site.published()) == 1
        site.reads()
        assert len(site.published()) == 1, "the first container still holds it"
    wait_until("the volume is unmounted", lambda: site.published() == [])
    site.engine.client.volumes.get("data").remove()
    assert (site.directory / "f").read_text() == "content"


def test_disable_by_force_and_enable_with_a_container_running(site: Site) -> None:
    plugin = site.engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    with site.engine.running(TINY, *SLEEP, volumes=site.volumes) as container:
        plugin.disable(force=True)
        assert inside(container, "cat", "/data/f") == (0, "content")
        plugin.enable(timeout=30)
        assert inside(container, "cat", "/data/f") == (0, "content")
        site.reads()
    wait_until("the volume is unmounted", lambda: site.published() == [])
    site.reads()


def test_a_volume_in_use_is_not_removed(site: Site) -> None:
    from docker.errors import APIError

    with site.engine.running(TINY, *SLEEP, volumes=site.volumes), pytest.raises(APIError, match="in use"):
        site.engine.client.volumes.get("data").remove()
    site.engine.client.volumes.get("data").remove()
    assert site.engine.client.volumes.list() == []


def test_a_directory_that_was_removed_and_made_anew_is_what_the_next_container_reads(site: Site) -> None:
    """Docker's own driver shows the removed one as long as a container has it, and no file can be made there."""
    with site.engine.running(TINY, *SLEEP, volumes=site.volumes) as old:
        (site.directory / "f").unlink()
        site.directory.rmdir()
        site.directory.mkdir()
        (site.directory / "f").write_text("content")
        site.reads()
        status = site.engine.client.volumes.get("data").attrs["Status"]
        assert status["health"] == "stale"
        assert f"container {str(old.id)[:12]}" in status["health_reason"]
        old.restart(timeout=1)
        assert inside(old, "cat", "/data/f") == (0, "content")
    wait_until("the volume is unmounted", lambda: site.published() == [])


def test_volumes_survive_a_restart_of_the_plugin_with_all_options(site: Site) -> None:
    options = {"type": "host", "host_path": str(site.directory), "read_only": "true"}
    site.engine.client.volumes.create("frozen", driver=PLUGIN, driver_opts=options)
    before = site.engine.client.volumes.get("frozen").attrs["Status"]
    site.engine.kill_plugin(PLUGIN)
    assert {volume.name for volume in site.engine.client.volumes.list()} == {"data", "frozen"}
    assert site.engine.client.volumes.get("frozen").attrs["Status"] == before
    exit_code, _ = site.engine.run(TINY, "touch", "/x/f2", volumes={"frozen": {"bind": "/x", "mode": "rw"}})
    assert exit_code != 0


def test_what_is_mounted_on_the_host_later_is_seen_and_not_held(site: Site) -> None:
    """/hostfs is a slave of the host: otherwise an unmounted disk stays busy in the plugin, a new one unseen."""
    disk = Path(f"/srv/brokervol-disk-{os.getpid()}")
    disk.mkdir()
    try:
        site.engine.execute("mount", "-t", "tmpfs", "disk", str(disk))
        (site.engine.path(disk) / "f").write_text("on the disk")
        site.engine.client.volumes.create("disk", driver=PLUGIN, driver_opts={"host_path": str(disk)})
        volumes = {"disk": {"bind": "/disk", "mode": "ro"}}
        assert site.engine.run(TINY, "cat", "/disk/f", volumes=volumes) == (0, "on the disk")
        site.engine.execute("umount", str(disk))
        driver = site.engine.plugin_pids(PLUGIN)[-1]
        held = Path(f"/proc/{driver}/mountinfo").read_text()
        assert str(disk) not in held
    finally:
        disk.rmdir()
