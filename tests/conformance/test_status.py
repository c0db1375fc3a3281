"""Status and metrics of the real driver: what the kernel shows beside what is told."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab import prometheus
from lab.directories import temporary_directory
from lab.namespaces import Host
from lab.plugin_host import plugin_host
from lab.processes import wait_until
from lab.unix_http import connected, request
from lab.volume_driver import VolumeDriver, driver_on
from storage.mountinfo import mount_at

pytestmark = pytest.mark.root

A, B = "a" * 64, "b" * 64


@contextlib.contextmanager
def driver_with(tmp_path: Path, mount_timeout_s: int) -> Iterator[VolumeDriver]:
    host = Host(tmp_path / "host")
    (host.files / "srv/data").mkdir(parents=True)
    with driver_on(host, "--nfs-mount-timeout-s", str(mount_timeout_s)) as driver:
        driver.create("data", "/srv/data")
        driver.create("idle", "/srv/data", read_only="true")
        driver.done("Create", Name="far", Opts={"nfs_path": "192.0.2.1:/export"})
        yield driver
        assert "internal error" not in driver.process.log()
    host.close()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[VolumeDriver]:
    with driver_with(tmp_path, mount_timeout_s=2) as driver:
        yield driver


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[VolumeDriver]:
    """One that waits for a server for longer than `brokervol status` takes on a busy machine."""
    with driver_with(tmp_path, mount_timeout_s=24) as driver:
        yield driver


def run(driver: VolumeDriver) -> subprocess.CompletedProcess[str]:
    """`brokervol status --json` on a host without an engine."""
    command = [sys.executable, "-m", "brokervol", "status", "--json", "--socket", driver.process.socket_path]
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=50)


def status(driver: VolumeDriver) -> dict[str, Any]:
    done = run(driver)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def metrics(driver: VolumeDriver) -> dict[str, float]:
    answer = request(driver.process.socket_path, "GET", "/metrics")
    assert answer.status == 200
    return prometheus.values(answer.body.decode())


def test_the_status_names_the_processes_that_hold_a_volume(driver: VolumeDriver) -> None:
    driver.mount("data", A)
    driver.mount("data", B)
    with driver.host.container(driver.mountpoint("data")) as pid:
        found = status(driver)
    assert (found["pid"], found["root"]) == (driver.process.pid, driver.root)
    volumes = {volume["name"]: volume for volume in found["volumes"]}
    data, idle = volumes["data"], volumes["idle"]
    assert [reference["id"] for reference in data["references"]] == [A, B]
    assert mount_at(driver.host.mounts(), data["mountpoint"]) is not None
    assert [(holder["pid"], holder["state"]) for holder in data["holders"]] == [(pid, "running")]
    assert (idle["is_mounted"], idle["read_only"], idle["holders"]) == (False, True, [])
    assert found["holders_from"] == "processes"
    assert [holder["pid"] for holder in status(driver)["volumes"][0]["holders"]] == [], "it has ended"


def test_metrics_count_what_was_done_and_tell_what_is(driver: VolumeDriver) -> None:
    driver.mount("data", A)
    driver.error(404, "Mount", Name="nobody", ID=A)
    found = metrics(driver)
    expected = {
        'brokervol_driver_calls_total{call="Create",status="200"}': 3,
        'brokervol_driver_calls_total{call="Mount",status="200"}': 1,
        'brokervol_driver_calls_total{call="Mount",status="404"}': 1,
        'brokervol_driver_call_seconds_count{call="Mount"}': 2,
        'brokervol_volumes{type="host"}': 2,
        'brokervol_volumes_mounted{type="host"}': 1,
        'brokervol_volumes_mounted{type="nfs"}': 0,
    }
    assert {series: found.get(series) for series in expected} == expected
    with open(f"/proc/{driver.process.pid}/status", encoding="ascii") as file:
        resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024
    assert found["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.2)


@contextlib.contextmanager
def silent_server(driver: VolumeDriver) -> Iterator[str]:
    """A server that accepts connections and says nothing, of which there is the volume `silent`."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        place = {"nfs_path": "127.0.0.1:/export", "mount_options": f"port={port}"}
        driver.done("Create", Name="silent", Opts=place)
        yield f"127.0.0.1:{port}"


def test_status_and_metrics_wait_for_no_mount(patient: VolumeDriver) -> None:
    mounting = 'brokervol_driver_calls_under_way{call="Mount"}'
    with ThreadPoolExecutor(1) as threads:
        with silent_server(patient):
            mount = threads.submit(patient.call, "Mount", Name="silent", ID=A)
            wait_until(lambda: metrics(patient)[mounting] == 1, "the call is seen")
            assert run(patient).returncode in (0, 3)
            assert not mount.done(), "neither waits for the mount"
        assert mount.result().status == 503, "it hung up"


def test_a_silent_server_is_shown_after_a_mount_has_waited_for_it(driver: VolumeDriver) -> None:
    with silent_server(driver) as server:
        assert driver.call("Mount", Name="silent", ID=A).status == 503
        found = metrics(driver)
        assert found['brokervol_driver_calls_total{call="Mount",status="503"}'] == 1
        assert found[f'brokervol_nfs_server_breaker_open{{server="{server}"}}'] == 1
        assert found['brokervol_volumes_unhealthy{health="unreachable"}'] == 1
        told = run(driver)
    assert told.returncode == 3
    (problem,) = json.loads(told.stdout)["problems"]
    assert (problem["subject"], problem["health"]) == (f"NFS server {server}", "unreachable")
    assert problem["reason"]


def test_the_load_of_the_sidecar_is_shown() -> None:
    with temporary_directory() as directory, plugin_host(directory) as host:
        with connected(host.sidecar.socket_path), connected(host.sidecar.socket_path):
            wait_until(lambda: (status(host.driver)["sidecar"] or {}).get("connections") == 2, "two connections")
        host.sidecar.kill()
        assert status(host.driver)["sidecar"] is None
