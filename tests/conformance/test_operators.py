"""What operators may look at, of a real driver and a real sidecar: metrics, status, the page in a real browser."""

from __future__ import annotations

import html
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import chromium, prometheus
from lab.directories import temporary_directory
from lab.processes import wait_until
from lab.status_site import Site, sidecar_of, status_site
from lab.unix_http import exchange, request
from unit.sidecar_process import clean_environment

pytestmark = pytest.mark.root

DASHBOARD = Path(__file__).parents[2] / "docs/grafana/brokervol.json"
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
ODD = "/srv/<b>a & b"  # a directory whose name would be something else in HTML
UPLOAD = "/v1/workspaces/data/upload"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with temporary_directory() as directory, status_site(directory) as site:
        site.driver.create("odd", ODD, create="true")
        yield site


def task(site: Site, method: str, path: str, body: object = None) -> Any:
    """What a task is answered."""
    sent = None if body is None else json.dumps(body).encode()
    return request(site.sidecar.socket_path, method, path, sent)


def metrics(site: Site) -> dict[str, float]:
    answer = site.get("/metrics")
    assert answer.status == 200
    return prometheus.values(answer.body.decode())


def counted(site: Site, expected: dict[str, float]) -> None:
    """Wait until the metrics say so: what is told is at most a second old."""

    def told() -> dict[str, float | None]:
        found = metrics(site)
        return {series: found.get(series) for series in expected}

    wait_until(lambda: told() == expected, f"the metrics to be {expected}, not {told()}", timeout_s=10)


# What is told


def test_metrics_of_both_processes_are_told(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    files = [{"local_path": str(tmp_path / "a"), "file_path": f"f{number}"} for number in range(3)]
    files.append({"local_path": str(tmp_path / "none"), "file_path": "none"})
    assert task(site, "POST", UPLOAD, {"files": files}).status == 404
    assert task(site, "GET", "/v1/workspaces/data/content/f1").status == 200
    assert task(site, "GET", "/v1/workspaces/nobody").status == 404
    assert task(site, "GET", "/nowhere").status == 404
    counted(
        site,
        {
            'brokervol_driver_calls_total{call="Create",status="200"}': 6,
            'brokervol_volumes_mounted{type="host"}': 2,
            'brokervol_references{type="host"}': 3,
            "brokervol_driver_up": 1,
            'brokervol_sidecar_calls_total{call="upload",status="404"}': 1,
            'brokervol_sidecar_calls_total{call="getContent",status="200"}': 1,
            'brokervol_sidecar_calls_total{call="other",status="404"}': 1,
            'brokervol_sidecar_call_seconds_count{call="upload"}': 1,
            'brokervol_sidecar_call_seconds_bucket{call="upload",le="+Inf"}': 1,
            'brokervol_sidecar_errors_total{code="missing-file"}': 1,
            'brokervol_sidecar_errors_total{code="unknown-workspace"}': 1,
            'brokervol_sidecar_errors_total{code="not-found"}': 1,
            'brokervol_sidecar_files_total{backend="host",call="upload",outcome="done"}': 3,
            'brokervol_sidecar_files_total{backend="host",call="upload",outcome="missing-file"}': 1,
            'brokervol_sidecar_bytes_total{backend="host",call="upload"}': 3000,
            'brokervol_sidecar_bytes_total{backend="host",call="getContent"}': 1000,
            'brokervol_sidecar_refusals_total{reason="malformed"}': 0,
        },
    )


def test_what_is_no_request_is_counted_as_refused(site: Site) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(site.sidecar.socket_path)
        client.sendall(b"NONSENSE\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    wait_until(lambda: metrics(site)['brokervol_sidecar_refusals_total{reason="malformed"}'] > 0, "it is counted")


def test_the_status_is_the_drivers_with_the_sidecars_load(site: Site) -> None:
    answer = site.get("/status")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    found = answer.json
    driver = request(site.driver.process.socket_path, "GET", "/brokervol/status").json
    for volume in driver["volumes"]:
        del volume["shown"], volume["host_path"]
    assert found["volumes"] == driver["volumes"]
    assert {*found} == {*driver, "socket", "sidecar"}
    assert (found["pid"], found["socket"]) == (site.driver.process.pid, site.driver.process.socket_path)
    assert {"connections", "running", "waiting", "refused", "uptime_s", "version"} == {*found["sidecar"]}


def test_the_driver_is_asked_once_however_many_look(site: Site) -> None:
    """Its uptime, in milliseconds, is that of the moment when it was asked."""
    for _ in range(5):
        seen = [site.get("/status").json["uptime_s"] for _ in range(5)]
        if len({*seen}) == 1:
            return
    pytest.fail(f"each look asks the driver: {seen}")


def test_root_is_told_the_same_on_a_socket(site: Site) -> None:
    for path in ("/status", "/metrics", "/"):
        answer = request(site.operators_socket, "GET", path, Host="anything")
        assert answer.status == 200
    assert {*request(site.operators_socket, "GET", "/status").json} == {*site.get("/status").json}


def test_without_a_driver_the_sidecar_tells_what_it_knows(short_dir: Path) -> None:
    with sidecar_of(short_dir, str(short_dir / "nobody.sock")) as sidecar:
        sidecar.wait_for_log("status is served")
        operators = str(short_dir / "root/.state/operators.sock")
        found = request(operators, "GET", "/status")
        assert found.status == 503
        assert "the driver does not answer at" in found.json["error"]
        assert "no such file or directory" in found.json["error"]
        assert prometheus.values(request(operators, "GET", "/metrics").body.decode())["brokervol_driver_up"] == 0
        page = request(operators, "GET", "/")
        assert page.status == 200
        assert "the driver does not answer at" in page.body.decode()
        assert request(sidecar.socket_path, "GET", "/healthz").status == 200


# Who is told


@pytest.mark.parametrize("path", ["/metrics", "/status", "/"])
def test_there_is_nothing_else_on_the_port(site: Site, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        refused = site.get(path, method)
        assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    head = site.get(path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    for other in ("/brokervol/status", "/VolumeDriver.List", "/v1/workspaces", "/healthz", f"{path}x", "/.."):
        assert site.get(other).status == 404
    for host in ("evil.example", "evil.example:9323", "127.0.0.1.evil.example", "[::2]:9323", ""):
        refused = site.get(path, Host=host)
        assert refused.status == 421
        assert b"volumes" not in refused.body
    for host in ("localhost", "localhost:1", "127.0.0.1:9", "[::1]:9323", "LOCALHOST"):
        assert site.get(path, Host=host).status == 200
    answer = site.get(path, Origin="http://evil.example")
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_tasks_and_users_are_told_nothing_of_it(site: Site) -> None:
    for path in ("/metrics", "/status", "/"):
        assert task(site, "GET", path).status == 404
    state = os.stat(site.root / ".state")
    assert (stat.S_IMODE(state.st_mode), state.st_uid) == (0o700, 0)
    assert stat.S_IMODE(os.stat(site.operators_socket).st_mode) == 0o600


def ports(pid: int) -> list[str]:
    """The sockets of the Internet that a process has, as the kernel lists them."""
    sockets = {os.readlink(f"/proc/{pid}/fd/{descriptor}") for descriptor in os.listdir(f"/proc/{pid}/fd")}
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6", "udp", "udp6")]
    rows = [row for table in tables for row in table.splitlines()[1:]]
    return [row for row in rows if f"socket:[{row.split()[9]}]" in sockets]


def test_nothing_listens_on_a_port_unless_it_is_asked_for(site: Site, short_dir: Path) -> None:
    with sidecar_of(short_dir, str(short_dir / "nobody.sock"), listen="") as sidecar:
        assert ports(sidecar.pid) == []
    assert ports(site.sidecar.pid) != [], "and they are seen where there are some"
    assert ports(site.driver.process.pid) == []


def test_a_port_that_is_taken_is_told_and_tasks_are_served(short_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with sidecar_of(short_dir, str(short_dir / "nobody.sock"), listen) as sidecar:
            sidecar.wait_for_log("status is not served")
            assert f'"where": "{listen}"' in sidecar.log()
            assert request(sidecar.socket_path, "GET", "/healthz").status == 200


def test_slow_clients_of_the_port_hurt_nobody_else(site: Site) -> None:
    """More connections than there may be, each with half a request; tasks and the engine are served."""
    host, _, port = site.address.rpartition(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(40)]
    try:
        for client in slow:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ")
        too_many = slow[-1].recv(1000)
        assert too_many.startswith(b"HTTP/1.1 503")
        assert task(site, "GET", "/v1/workspaces/data/files").status == 200
        site.driver.done("Get", Name="imagery")
    finally:
        for client in slow:
            client.close()
    wait_until(lambda: site.get("/status").status == 200, "those that are gone to be forgotten")


# The page, and what Grafana shows


@pytest.fixture
def browser() -> None:
    if absence := chromium.absence():
        pytest.skip(absence)


@pytest.mark.usefixtures("browser")
def test_a_browser_shows_the_page_and_has_nothing_to_complain_of(site: Site, tmp_path: Path) -> None:
    shown = chromium.document(f"http://{site.address}/")
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", shown)]
    cells = {row.strip("|").split("||")[0]: row for row in rows}
    assert {"imagery", "products", "odd", "broker", "scenes", "archive"} <= {*cells}
    assert "||host||" in cells["imagery"]
    assert "||read-only||2||" in cells["imagery"]
    assert "||read-write||1||" in cells["products"]
    assert "||s3://scenes/2026||" in cells["scenes"]
    assert html.escape(ODD) in shown
    assert "<b>" not in shown
    assert "6 volumes, 3 mounted" in shown
    assert '<td class="unreachable">unreachable</td>' in shown
    (server,) = (problem["subject"] for problem in site.get("/status").json["problems"])
    assert f"<li>{server} is unreachable: " in shown
    pictures = [tmp_path / name for name in ("light.png", "dark.png")]
    for file, is_dark in zip(pictures, (False, True), strict=True):
        chromium.picture(f"http://{site.address}/", file, is_dark=is_dark)
        assert file.stat().st_size > 10_000
    assert pictures[0].read_bytes() != pictures[1].read_bytes()


def test_grafana_asks_for_metrics_that_there_are_and_for_all_of_them(site: Site) -> None:
    """NFS servers' are told once there is one in use, so the documented ones stand for those."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    named = {name for expression in asked for name in re.findall(r"\b(?:brokervol|process)_\w+", expression)}
    documented = {*re.findall(r"^\| `(\w+)` \| (?:gauge|counter|histogram)", OPERATIONS.read_text(), re.MULTILINE)}
    of = {name.removesuffix("_bucket") if "seconds_bucket" in name else name for name in named}
    told = {re.match(r"\w+", series)[0] for series in metrics(site)}  # type: ignore[index]
    assert named <= told | {name for name in documented if name.startswith("brokervol_nfs_server_")}
    assert of <= documented
    unasked = {name for name in documented - of if not name.endswith("virtual_memory_bytes")}
    assert not unasked, "no panel shows them"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len({*ids})


# Ids of requests, and where lines go


def test_one_id_links_answer_problem_log_and_audit(site: Site) -> None:
    bad = {"files": [{"local_path": "/nowhere/at/all", "file_path": "f"}]}
    answer = task(site, "POST", UPLOAD, bad)
    request_id = answer.headers["X-Request-Id"]
    assert answer.json["instance"] == f"urn:brokervol:request:{request_id}"
    lines = (site.root / ".state/audit.jsonl").read_text().splitlines()
    told = [line for line in map(json.loads, lines) if line["request"] == request_id]
    assert [(line["operation"], line["outcome"]) for line in told] == [("upload", "missing-file")]
    others = [task(site, "GET", path) for path in ("/healthz", "/healthz", "/nowhere")]
    ids = {other.headers["X-Request-Id"] for other in others}
    assert len(ids | {request_id}) == 4
    assert others[-1].json["instance"].endswith(others[-1].headers["X-Request-Id"])


def test_the_drivers_lines_name_the_request_the_volume_and_the_mount(site: Site) -> None:
    mounted = site.driver.done("Mount", Name="products", ID="f" * 64)
    refused = site.driver.call("Mount", Name="nobody", ID="f" * 64)
    site.driver.done("Unmount", Name="products", ID="f" * 64)
    lines = [json.loads(line) for line in site.driver.process.log().splitlines()]
    of = {line["request"]: line for line in lines if "request" in line}
    found = of[mounted.headers["X-Request-Id"]]
    assert (found["event"], found["volume"], found["id"]) == ("volume mounted", "products", "f" * 12)
    line = of[refused.headers["X-Request-Id"]]
    assert (line["event"], line["volume"]) == ("call refused", "nobody")
    assert all("volume" not in line for line in lines if line["event"] in ("listening", "serving"))


def test_nothing_is_said_on_standard_error_and_all_else_is_json(short_dir: Path) -> None:
    """By the daemon and both its children, whatever they are asked, from start to end."""
    root, driver = short_dir / "root", str(short_dir / "driver.sock")
    tasks = str(root / "sidecar/broker.sock")
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "brokervol", "daemon"]
    command += ["--root", str(root), "--socket", driver, "--log-level", "debug"]
    out, err = (short_dir / "out").open("w+"), (short_dir / "err").open("w+")
    with out, err, subprocess.Popen(command, stdout=out, stderr=err, env=clean_environment()) as daemon:
        try:
            wait_until(lambda: "sidecar listens" in Path(out.name).read_text(), "both to listen")
            wait_until(lambda: "serving" in Path(out.name).read_text(), "the driver to serve")
            for verb, status in (
                ("Create", 200),
                ("Mount", 200),
                ("Unmount", 200),
                ("Remove", 200),
                ("Mount", 404),
            ):
                body = json.dumps({"Name": "broker", "ID": "a", "Opts": {"type": "sidecar"}}).encode()
                assert request(driver, "POST", f"/VolumeDriver.{verb}", body).status == status
            for path in (driver, tasks):
                assert exchange(path, b"NONSENSE\xff\r\n\r\n").startswith(b"HTTP/1.1 400")
                assert request(path, "POST", "/nowhere", b"{").status == 404
        finally:
            daemon.terminate()
            assert daemon.wait(20) == 0
        assert Path(err.name).read_text() == ""
        lines = [json.loads(line) for line in Path(out.name).read_text().splitlines()]
        assert {"serving", "sidecar listens", "volume mounted", "stopped"} <= {line["event"] for line in lines}
