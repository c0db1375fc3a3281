"""What the driver tells of itself: the values of its metrics, its status, and that the docs name all of both.

And all metrics of the sidecar, whose values are looked at in `conformance/test_operators.py`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from brokervol.server import Load
from lab import prometheus
from lab.memory_driver import Machine
from sidecar import exposition
from sidecar.metrics import Metrics as SidecarMetrics
from storage.definitions import Definition, utc_now
from volumedriver.api import create_app
from volumedriver.health import ServerHealth, State
from volumedriver.metrics import Metrics
from volumedriver.nfs_servers import Servers
from volumedriver.options import NfsOptions
from volumedriver.status import Status
from volumedriver.workers import Workers

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
SINCE = datetime(2026, 11, 22, 12, tzinfo=UTC)
SERVERS = [
    ServerHealth("nas", State.HEALTHY, SINCE, "", 0.25, 3, False),
    ServerHealth("dead", State.UNREACHABLE, SINCE, "connections to port 2049 are refused", None, None, True),
]


class KnownServers(Servers):
    """Servers of which somebody has found out this much."""

    def __init__(self) -> None:
        """Nobody asks them."""

    def report(self) -> list[ServerHealth]:
        return SERVERS

    def health(self, options: NfsOptions) -> ServerHealth | None:
        return next((server for server in SERVERS if server.server == options.place.server), None)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.definitions.add([Definition("odd", {"type": "tape"}, utc_now())])
    driver = machine.start()
    driver.create("data", {"host_path": "/srv/data"})
    driver.create("broker", {"type": "sidecar"})
    driver.create("bucket", {"bucket_name": "imagery", "prefix": "2026/"})
    driver.create("far", {"nfs_path": "nas:/export"})
    driver.create("lost", {"nfs_path": "dead:/export"})
    for mount_id in ("a", "b", "b"):
        driver.mount("data", mount_id)
    yield machine
    machine.stop()


@pytest.fixture
def client(machine: Machine) -> FlaskClient:
    status = Status(machine.driver, KnownServers(), Workers(), str(machine.root))
    return create_app(machine.driver, status, Metrics(status)).test_client()


def values(client: FlaskClient) -> dict[str, float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    return prometheus.values(answer.text)


def test_what_is_known_is_told(client: FlaskClient) -> None:
    found = values(client)
    expected = {
        'brokervol_volumes{type="host"}': 1,
        'brokervol_volumes{type="nfs"}': 2,
        'brokervol_volumes_mounted{type="host"}': 1,
        'brokervol_volumes_mounted{type="nfs"}': 0,
        'brokervol_references{type="host"}': 3,
        'brokervol_volumes_unhealthy{health="stale"}': 0,
        'brokervol_volumes_unhealthy{health="unreachable"}': 1,
        'brokervol_volumes_unhealthy{health="unusable"}': 1,
        'brokervol_nfs_server_state{server="nas",state="healthy"}': 1,
        'brokervol_nfs_server_state{server="nas",state="unreachable"}': 0,
        'brokervol_nfs_server_state{server="dead",state="unreachable"}': 1,
        'brokervol_nfs_server_since_timestamp_seconds{server="dead"}': SINCE.timestamp(),
        'brokervol_nfs_server_breaker_open{server="dead"}': 1,
        'brokervol_nfs_server_breaker_open{server="nas"}': 0,
        'brokervol_nfs_server_round_trip_seconds{server="nas"}': 0.00025,
        'brokervol_nfs_server_retransmits_total{server="nas"}': 3,
        'brokervol_nfs_workers{state="idle"}': 0,
        'brokervol_nfs_workers{state="busy"}': 0,
    }
    assert {series: found.get(series) for series in expected} == expected
    assert 'brokervol_nfs_server_round_trip_seconds{server="dead"}' not in found, "nobody knows it"
    assert not any("_created" in series for series in found)


def test_calls_are_counted_by_what_came_of_them(client: FlaskClient) -> None:
    before = values(client)
    assert before['brokervol_driver_calls_total{call="Mount",status="200"}'] == 0, "there before the first call"
    client.post("/VolumeDriver.Get", json={"Name": "data"})
    client.post("/VolumeDriver.Get", json={"Name": "nobody"})
    client.post("/VolumeDriver.Get")
    client.post("/Plugin.Activate")
    client.post("/VolumeDriver.Nonsense")
    client.get("/VolumeDriver.Get")
    found = values(client)
    counted = {series: value for series, value in found.items() if "calls_total" in series and value}
    assert counted == {
        'brokervol_driver_calls_total{call="Get",status="200"}': 1,
        'brokervol_driver_calls_total{call="Get",status="400"}': 1,
        'brokervol_driver_calls_total{call="Get",status="404"}': 1,
        'brokervol_driver_calls_total{call="Get",status="405"}': 1,
        'brokervol_driver_calls_total{call="Activate",status="200"}': 1,
    }
    assert found['brokervol_driver_call_seconds_count{call="Get"}'] == 4
    assert found['brokervol_driver_call_seconds_bucket{call="Get",le="25.0"}'] == 4
    assert 0 < found['brokervol_driver_call_seconds_sum{call="Get"}'] < 4
    under_way = {value for series, value in found.items() if "under_way" in series}
    assert under_way == {0}


def test_a_call_that_fails_unforeseen_is_counted_and_over(client: FlaskClient, machine: Machine) -> None:
    machine.stop()  # its state is closed under the driver
    assert client.post("/VolumeDriver.Remove", json={"Name": "bucket"}).status_code == 500
    found = values(client)
    assert found['brokervol_driver_calls_total{call="Remove",status="500"}'] == 1
    assert found['brokervol_driver_calls_under_way{call="Remove"}'] == 0


def test_the_status_names_volumes_servers_and_problems(client: FlaskClient, machine: Machine) -> None:
    answer = client.get("/brokervol/status")
    assert answer.content_type == "application/json"
    document: dict[str, Any] = answer.get_json()
    volumes = {volume["name"]: volume for volume in document["volumes"]}
    data, far, lost, odd = (volumes[name] for name in ("data", "far", "lost", "odd"))
    assert (data["type"], data["source"], data["is_mounted"], data["health"]) == ("host", "/srv/data", True, None)
    assert data["references"] == [{"id": "a", "count": 1}, {"id": "b", "count": 2}]
    assert data["mountpoint"] == machine.driver.get("data").mountpoint
    assert volumes["bucket"]["source"] == "s3://imagery/2026"
    assert (far["source"], far["health"], far["reason"]) == ("nas:/export", "healthy", "")
    assert (lost["health"], lost["reason"]) == ("unreachable", "connections to port 2049 are refused")
    assert odd["health"] == "unusable"
    assert "tape" in odd["reason"]
    assert document["nfs_servers"][1] == {
        "server": "dead",
        "state": "unreachable",
        "since": "2026-11-22T12:00:00+00:00",
        "reason": "connections to port 2049 are refused",
        "round_trip_ms": None,
        "retransmits": None,
        "is_open": True,
    }
    assert [problem["subject"] for problem in document["problems"]] == ["volume odd", "NFS server dead"]


def test_what_is_told_is_asked_by_get_and_calls_by_post(client: FlaskClient) -> None:
    for path in ("/metrics", "/brokervol/status"):
        answer = client.post(path)
        assert (answer.status_code, answer.get_json()["Err"]) == (405, f"{path} is called with GET, not POST")
    assert "with POST" in client.get("/VolumeDriver.List").get_json()["Err"]


def test_a_mount_that_hangs_does_not_hang_those_who_want_to_see_it(client: FlaskClient, machine: Machine) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def hang(_: str) -> None:
        begun.set()
        assert may_end.wait(20)

    machine.mounter.before_mount = hang
    machine.containers.asked.clear()
    mounting = threading.Thread(
        target=client.post, args=["/VolumeDriver.Mount"], kwargs={"json": {"Name": "broker", "ID": "x"}}
    )
    mounting.start()
    assert begun.wait(20)
    try:
        assert values(client)['brokervol_driver_calls_under_way{call="Mount"}'] == 1
        assert client.get("/brokervol/status").status_code == 200
    finally:
        may_end.set()
        mounting.join()
    found = values(client)
    assert found['brokervol_driver_calls_under_way{call="Mount"}'] == 0
    assert found['brokervol_driver_calls_total{call="Mount",status="200"}'] == 1
    assert machine.containers.asked == [], "nor is anybody asked who holds what"


def test_the_page_lists_the_metrics_that_there_are(client: FlaskClient) -> None:
    counts, load = SidecarMetrics().counts(), Load(0, 0, 0, {})
    of_sidecar = exposition.text(counts, load, is_driver_up=True).decode()
    exported = set(re.findall(r"^# TYPE (\w+) ", client.get("/metrics").text + of_sidecar, re.MULTILINE))
    listed = re.findall(r"^\| `(brokervol_\w+|process_\w+)`", PAGE, re.MULTILINE)
    assert len(listed) == len({*listed})
    assert {*listed} == exported


def test_the_page_lists_the_fields_of_the_status(client: FlaskClient) -> None:
    """But for two that only the command itself uses."""
    document = client.get("/brokervol/status").get_json()
    names = {*document, *document["volumes"][0], *document["nfs_servers"][0], *document["problems"][0]}
    names -= {"shown", "host_path"}
    section = PAGE.partition("### The document")[2].partition("\n## ")[0]
    assert names <= {*re.findall(r"`(\w+)`", section)}
