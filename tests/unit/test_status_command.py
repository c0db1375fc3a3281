"""`brokervol status`: how it finds the driver, what it prints where, and its exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from brokervol import containers, status, tables
from lab import doctor
from lab.directories import temporary_directory
from unit.scripted_sidecar import Request, answer, scripted_sidecar

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ID = "3f" * 32
VOLUME: dict[str, Any] = {
    "name": "data",
    "type": "host",
    "source": "/srv/data",
    "read_only": False,
    "created": "2026-11-22T10:00:00+00:00",
    "mountpoint": "/var/lib/brokervol/volumes/0",
    "is_mounted": True,
    "references": [{"id": "a" * 64, "count": 2}, {"id": "b" * 64, "count": 1}],
    "shown": {"device": "999:999", "root": "/srv/data", "source": "/dev/nowhere"},
    "host_path": "/srv/data",
    "health": None,
    "reason": "",
}
SERVER: dict[str, Any] = {
    "server": "nas",
    "state": "unreachable",
    "since": (NOW - timedelta(minutes=12)).isoformat(),
    "reason": "connections to port 2049 are refused",
    "round_trip_ms": None,
    "retransmits": None,
    "is_open": True,
}
PROBLEM = {"subject": "NFS server nas", "health": "unreachable", "reason": SERVER["reason"]}


def told(**changes: Any) -> dict[str, Any]:
    """What a driver answers."""
    document = {
        "version": "9.9",
        "pid": 7,
        "root": "/var/lib/brokervol",
        "started": "2026-11-22T10:00:00+00:00",
        "uptime_s": 11_520.5,
        "workers": {"idle": 2, "busy": 0},
        "volumes": [VOLUME],
        "nfs_servers": [],
        "problems": [],
    }
    return {**document, **changes}


class Site:
    """A directory with sockets of drivers, and the command run against it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = str(directory / "brokervol.sock")
        # No engine is asked: what runs on this machine is nothing to the tests.
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{directory}/none", "TERM": "xterm"}
        self.environment.pop("NO_COLOR", None)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "brokervol", "status", "--socket", self.socket, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=50, check=False
        )

    def start(self, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments), env=self.environment, stdout=stdout, stderr=subprocess.PIPE
        )


@pytest.fixture
def site() -> Iterator[Site]:
    with temporary_directory() as directory:
        yield Site(directory)


def saying(path: str, said: Callable[[], bytes]) -> contextlib.AbstractContextManager[list[Request]]:
    def script(_: Request, write: Callable[[bytes], object]) -> None:
        write(said())

    return scripted_sidecar(path, script)


def driver(path: str, document: Callable[[], object]) -> contextlib.AbstractContextManager[list[Request]]:
    return saying(path, lambda: answer(document()))


def page(document: dict[str, Any]) -> list[str]:
    return tables.plain(
        status.page({"socket": "/s", "holders_from": "engine", "sidecar": None, **document}, NOW)
    ).splitlines()


def held(*holders: tuple[str | None, str | None, str, int | None]) -> list[dict[str, Any]]:
    return [containers.Holder(*holder)._asdict() for holder in holders]


# What is shown


def test_volumes_are_shown_with_who_holds_them() -> None:
    volumes = [
        {**VOLUME, "holders": held(("train-7", ID, "running", None), ("old", ID, "exited", None))},
        {**VOLUME, "name": "far", "type": "nfs", "source": "nas:/export", "health": "healthy"}
        | {"holders": held((None, ID, "running", 41), (None, None, "running", 42))},
        {**VOLUME, "name": "broker", "type": "sidecar", "source": "", "is_mounted": False}
        | {"references": [], "holders": []},
    ]
    load = {"uptime_s": 61, "connections": 4, "running": 2, "waiting": 1, "refused": {"wait": 2, "head": 3}}
    assert page(told(volumes=volumes, sidecar=load)) == [
        "brokervol 9.9 at /s, up 3 h 12 min: 3 volumes, 2 mounted",
        "sidecar, up 1 min: 4 connections, 2 requests running, 1 waiting, 5 refused so far",
        "",
        "NAME    TYPE     SOURCE       MOUNTS  HELD BY                        HEALTH",
        "data    host     /srv/data         3  train-7, old (exited)          -",
        "far     nfs      nas:/export       3  3f3f3f3f3f3f (pid 41), pid 42  healthy",
        "broker  sidecar  -                 0  -                              -",
    ]


def test_servers_and_problems_are_shown() -> None:
    well = {**SERVER, "server": "[fe80::1]:2050", "state": "healthy", "reason": "", "is_open": False}
    well |= {"round_trip_ms": 0.26, "retransmits": 3, "since": (NOW - timedelta(days=4, hours=2)).isoformat()}
    stale = {"subject": "volume data", "health": "stale", "reason": "the server does not know it any more"}
    dead = {**SERVER, "reason": "it is down"}
    assert page(told(volumes=[], nfs_servers=[dead, well], problems=[PROBLEM, stale]))[3:] == [
        "NFS SERVER      STATE            FOR  ROUND TRIP  RESENT  MOUNTS ARE  REASON",
        "nas             unreachable   12 min           -       -  refused     it is down",
        "[fe80::1]:2050  healthy      4 d 2 h      0.3 ms       3  tried       -",
        "",
        "volume data is stale: the server does not know it any more",
    ]


def test_nothing_that_is_shown_talks_to_the_terminal(site: Site) -> None:
    bad = {**VOLUME, "source": "/srv/\x1b[2Jx", "health": "[red]odd"}
    problem = {"subject": "volume \x07", "health": "stale", "reason": "\x1b]0;title\x07[bold]"}
    with driver(site.socket, lambda: told(volumes=[bad], problems=[problem])):
        text = site.run().stdout
        shown = on_terminal(site)
    for found in (text, shown):
        assert "\x1b[2J" not in found
        assert "\x07" not in found
        assert "/srv/\\x1b[2Jx" in found
        assert "[red]odd" in found, "nor is anything markup"
        assert "\\x1b]0;title\\x07[bold]" in found


def on_terminal(site: Site, *arguments: str, ends: str = "") -> str:
    """What a terminal of 200 columns is sent; where it `ends` is when the command gets Ctrl-C."""
    controller, terminal = os.openpty()
    text = b""
    site.environment["COLUMNS"] = "200"
    with open(controller, "rb", buffering=0) as output, site.start(*arguments, stdout=terminal) as process:
        os.close(terminal)
        with contextlib.suppress(OSError):  # the terminal's other side is closed
            while part := output.read(65536):
                text += part
                if ends and ends.encode() in text:
                    process.send_signal(signal.SIGINT)
                    ends = ""
        assert process.wait(50) in (0, 3)
    return text.decode()


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
def test_names_states_and_reasons_are_readable_on_terminals_of_any_width(site: Site, columns: int) -> None:
    far = {
        **VOLUME,
        "name": "imagery-2026-of-all-regions",
        "source": "/srv/some/where/deep/down",
        "health": "stale",
    }
    with driver(site.socket, lambda: told(volumes=[far], nfs_servers=[SERVER], problems=[PROBLEM])):
        shown = doctor.at_terminal(columns, site.command(), 3)
    assert all(len(line) <= columns for line in shown.splitlines())
    assert {"unreachable", "stale", "refused"} <= {*shown.split()}, "each whole"
    assert "connectionstoport2049arerefused" in "".join(shown.split())
    if columns < 80:
        assert "imagery-2026-of-all-regions" in "".join(shown.split())
        assert "source:/srv/some/where/deep/down" in "".join(shown.split())


@pytest.mark.parametrize("body", [b"[]", b"{}", b"7", b"[" * 100_000, b"\xff"])
def test_what_is_no_driver_is_told_as_such(site: Site, body: bytes) -> None:
    with saying(site.socket, lambda: answer(body)):
        done = site.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"brokervol: status: no driver answers at {site.socket} (")
    assert "Traceback" not in done.stderr


def test_ctrl_c_before_anything_was_found_is_no_success(site: Site) -> None:
    asked, released = threading.Event(), threading.Event()

    def silence() -> bytes:
        asked.set()
        released.wait(20)
        return b""

    with saying(site.socket, silence):
        try:
            with site.start() as process:
                assert asked.wait(20)
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=20) == (b"", b"")
        finally:
            released.set()
    assert process.returncode == 130


def test_colours_are_for_terminals_only(site: Site) -> None:
    well = {**VOLUME, "name": "stale", "health": "healthy"}
    with driver(site.socket, lambda: told(volumes=[well], nfs_servers=[SERVER])):
        shown, piped = on_terminal(site), site.run().stdout
        site.environment["NO_COLOR"] = "1"
        plain = on_terminal(site)
    assert "\x1b[32mhealthy" in shown
    assert "\x1b[1;31munreachable" in shown
    assert "31mstale" not in shown, "a name is no state"
    assert "\x1b" not in piped
    assert "\x1b[32m" not in plain


def test_without_rich_a_terminal_gets_plain_columns(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with driver(site.socket, told):
        missing = "import sys; sys.modules['rich'] = sys.modules['docker'] = None; "
        code = f"{missing}from brokervol.__main__ import main; sys.exit(main())"
        monkeypatch.setattr(
            Site, "command", lambda self, *_: [sys.executable, "-c", code, "status", "--socket", self.socket]
        )
        shown = on_terminal(site)
    assert "\x1b" not in shown
    assert "data  host  /srv/data       3" in shown


# The document


def test_json_is_one_line_and_the_exit_code_tells(site: Site) -> None:
    documents = iter([told(), told(problems=[PROBLEM], nfs_servers=[SERVER])])
    with driver(site.socket, lambda: next(documents)):
        well, bad = site.run("--json"), site.run("--json")
    assert (well.returncode, bad.returncode) == (0, 3)
    (line,) = well.stdout.splitlines()
    found = json.loads(line)
    assert found["socket"] == site.socket
    assert found["holders_from"] == "processes"
    (volume,) = found["volumes"]
    assert volume["holders"] == []
    assert {*volume} == {*VOLUME, "holders"} - {"shown", "host_path"}
    assert json.loads(bad.stdout)["problems"] == [PROBLEM]


def test_containers_are_found_by_the_volumes_that_they_mount(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an engine lists them: a link to a container is another of its names."""

    def mount(name: str, driver: str = "brokervol:latest", kind: str = "volume") -> dict[str, str]:
        return {"Type": kind, "Name": name, "Driver": driver, "Destination": "/data"}

    bind = {"Type": "bind", "Source": "/srv", "Destination": "/srv"}
    listed = [
        {"Id": "1" * 64, "Names": ["/web/train", "/train"], "State": "running", "Mounts": [mount("data"), bind]},
        {"Id": "2" * 64, "Names": ["/old"], "State": "exited", "Mounts": [mount("data"), mount("data")]},
        {"Id": "3" * 64, "Names": ["/else"], "State": "running", "Mounts": [mount("data", "local")]},
        {"Id": "4" * 64, "Names": ["/third"], "State": "running", "Mounts": [mount("nobody's")]},
    ]

    def engine(request: Request, write: Callable[[bytes], object]) -> None:
        write(answer({"ApiVersion": "1.44"} if request.target.endswith("/version") else listed))

    monkeypatch.setenv("DOCKER_HOST", f"unix://{site.directory}/engine")
    with scripted_sidecar(str(site.directory / "engine"), engine) as requests:
        found = containers.of_engine(["data", "unused"])
    assert found == {
        "data": [
            containers.Holder("train", "1" * 64, "running", None),
            containers.Holder("old", "2" * 64, "exited", None),
        ],
        "unused": [],
    }
    assert len(requests) == 2, "one request, however many containers there are"


# Finding the driver


def test_the_only_driver_that_answers_is_found(site: Site) -> None:
    managed = site.directory / ID
    managed.mkdir()
    path = str(managed / "brokervol.sock")
    with driver(site.socket, lambda: told(version="legacy")):
        pass  # its socket is left there
    with driver(path, told):
        assert status.find_driver(None, str(site.directory))["socket"] == path
        os.unlink(site.socket)
        with driver(site.socket, told), pytest.raises(status.Several, match=f"name one of .*{ID}.* by --socket"):
            status.find_driver(None, str(site.directory))


def test_what_does_not_answer_is_told_with_what_to_do(site: Site) -> None:
    with pytest.raises(status.Unreachable, match=r"no driver has its socket in .*--socket"):
        status.find_driver(None, str(site.directory))
    missing = site.run()
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith(f"brokervol: status: no driver answers at {site.socket} (no such file or")
    assert "docker plugin enable brokervol" in missing.stderr
    with saying(site.socket, lambda: answer({}, "404 Not Found")):
        other = site.run("--json")
    assert (other.returncode, other.stdout) == (1, "")
    assert f"what listens at {site.socket} answers 404" in other.stderr
    with (
        saying(site.socket + "2", lambda: b"nonsense\r\n\r\n"),
        pytest.raises(status.Unreachable, match="no driver answers"),
    ):
        status.find_driver(site.socket + "2")


@pytest.mark.parametrize("interval", ["0", "x", "nan", "inf", "-1", "\u0661"])
def test_an_interval_that_is_none_is_refused(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        status.main([f"--watch={interval}"])
    assert ended.value.code == 2
    assert f"'{interval}' is not accepted: seconds, 0.1 to 86400" in capsys.readouterr().err


# Watching


def test_watching_in_a_pipe_prints_page_after_page_until_ctrl_c(site: Site) -> None:
    with driver(site.socket, lambda: told(problems=[PROBLEM], nfs_servers=[SERVER])):
        with site.start("--watch", "0.1") as process:
            assert process.stdout is not None
            pages = 0
            while pages < 3:
                pages += process.stdout.readline().startswith(b"brokervol 9.9")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (3, b""), "the code of the last look"
        with site.start("--watch", "0.1", "--json") as process:
            assert process.stdout is not None
            assert [json.loads(process.stdout.readline())["version"] for _ in range(2)] == ["9.9", "9.9"]
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


def test_watching_on_a_terminal_goes_on_while_the_driver_is_away(site: Site) -> None:
    looks = 0

    def script(_: Request, write: Callable[[bytes], object]) -> None:
        nonlocal looks
        looks += 1
        write(answer({}, "503 Service Unavailable") if looks == 2 else answer(told(version=f"9.{looks}")))

    with scripted_sidecar(site.socket, script):
        shown = on_terminal(site, "--watch=0.1", ends="brokervol 9.3")
    assert "brokervol 9.1" in shown
    assert "answers 503" in shown
    assert shown.endswith("\x1b[?25h\x1b[?1049l"), "the screen is as it was, with its cursor"


def test_nobody_reads_the_output(site: Site) -> None:
    with driver(site.socket, told), site.start("--watch", "0.1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
