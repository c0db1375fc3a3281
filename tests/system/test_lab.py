"""The laboratory itself: what it shows is only worth something if it is a real engine, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
from docker.errors import APIError
from docker.models.plugins import Plugin

import build
from lab import images, keeper
from lab.engine import Engine, traces, wait_until

_UNTIDY = """
import sys, time
from pathlib import Path
from lab import images
from lab.engine import Engine
with Engine(Path(sys.argv[1])) as engine:
    images.load_tiny(engine)
    with engine.running(images.TINY, "sleep", "1000"):
        print(engine.pid, engine.cgroup, flush=True)
        time.sleep(1000)
"""


def test_engine_leaves_nothing() -> None:
    with Engine() as engine:
        images.load_tiny(engine)
        assert engine.run(images.TINY, "id", "-u", user="1000") == (0, "1000\n")
        assert traces(engine.directory, engine.cgroup)
    assert not traces(engine.directory, engine.cgroup)


def test_engine_leaves_nothing_when_the_test_run_is_killed() -> None:
    directory = Path(tempfile.mkdtemp(prefix="brokervol-lab-"))
    command = [sys.executable, "-c", _UNTIDY, str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as run:
        assert run.stdout is not None
        pid, cgroup = run.stdout.readline().decode().split()
        assert int(pid) in keeper.descendants(os.getpid())
        run.kill()
    wait_until("the keeper has cleaned up", lambda: not traces(directory, cgroup))


def test_mounts_in_the_engine_stay_there(tmp_path: Path) -> None:
    with Engine() as engine:
        engine.execute("mount", "-t", "tmpfs", "lab", str(tmp_path))
        assert str(tmp_path) in [mount.mountpoint for mount in engine.mounts()]
        assert not os.path.ismount(tmp_path)
        (engine.path(tmp_path) / "file").touch()
    assert not list(tmp_path.iterdir())


def test_killed_engine_starts_again_with_its_containers() -> None:
    with Engine(live_restore=True) as engine:
        images.load_tiny(engine)
        with engine.running(images.TINY, "sleep", "1000") as container:
            engine.kill()
            assert not engine.is_running()
            engine.start()
            container.reload()
            assert container.status == "running"


def whole_plugin(engine: Engine, plugin: Plugin) -> list[int]:
    """Its processes, once both the driver and the sidecar are among them."""

    def found() -> list[int]:
        pids, words = engine.plugin_pids(str(plugin.name)), set[bytes]()
        for pid in pids:
            with contextlib.suppress(OSError):  # ended meanwhile
                words.update(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        return pids if {b"volumedriver", b"sidecar"} <= words else []

    pids: list[int] = wait_until("driver and sidecar run", found)
    return pids


def test_plugin_processes_are_found_by_id_and_come_back(engine: Engine, plugin: Plugin) -> None:
    before = whole_plugin(engine, plugin)
    assert b"daemon" in Path(f"/proc/{before[0]}/cmdline").read_bytes()
    engine.kill_plugin(str(plugin.name))
    after = whole_plugin(engine, plugin)
    assert len(after) == len(before)
    assert not set(after) & set(before)
    plugin.reload()
    assert plugin.enabled


def test_a_setting_that_is_not_accepted_is_told_and_can_be_mended(engine: Engine, plugin: Plugin) -> None:
    """In the engine's log: its own answer is that nobody is at the socket. The right one works."""
    mark = len(engine.log)
    with pytest.raises(APIError, match="no such file or directory"):
        build.enable(plugin, {"NFS_MOUNT_TIMEOUT_S": "99"})
    wait_until("it is told", lambda: "accepted is" in engine.log[mark:])
    told = [line for line in engine.log[mark:].splitlines() if "accepted is" in line]
    assert len(told) == 1
    assert (
        "NFS_MOUNT_TIMEOUT_S (--nfs-mount-timeout-s) is '99'; accepted is a whole number from 1 to 24" in told[0]
    )
    assert f"plugin={plugin.id}" in told[0]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    plugin.reload()
    build.enable(plugin, {"NFS_MOUNT_TIMEOUT_S": "20", "STATUS_LISTEN": address})
    try:
        plugin.reload()
        assert f"STATUS_LISTEN={address}" in (plugin.settings or {})["Env"]
        wait_until("the status is served", lambda: "status is served" in engine.log[mark:])
        with urllib.request.urlopen(f"http://{address}/status", timeout=30) as answer:
            assert json.load(answer)["socket"] == "/run/docker/plugins/brokervol.sock"
    finally:
        plugin.reload()
        build.enable(plugin, {"STATUS_LISTEN": ""})
