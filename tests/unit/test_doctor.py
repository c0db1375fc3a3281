"""`brokervol doctor`: its table of checks, how they are run, what is printed where. Others plant the faults."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from brokervol import engine as asked
from brokervol import status
from brokervol.doctor import __main__ as command
from brokervol.doctor import checks, engine, host, nfs, s3, service, site
from brokervol.doctor.checks import CHECKS, Check, Told
from brokervol.doctor.findings import Finding, Result, fault, ok, skipped, unseen, warning
from brokervol.doctor.site import Site
from brokervol.engine import Engine, NoEngine, Plugin
from brokervol.status import Unreachable
from lab import doctor
from lab.directories import temporary_directory
from lab.namespaces import in_private_network
from lab.processes import wait_until
from unit.scripted_sidecar import Request, answer, scripted_sidecar
from volumedriver.options import NfsOptions, parse

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
SITE = Site(NoEngine("none"), Unreachable("none: start it"), None, None, {}, "environment", [])


def told(*checked: Check, names: Sequence[str] = (), deadline_s: float = 10) -> list[Told]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checks, "CHECKS", checked)
        return list(checks.run(SITE, names, deadline_s))


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    (_, section) = PAGE.split("### `brokervol doctor`\n")
    table = section.split("\n### ")[0]
    documented = re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE)
    assert list(dict.fromkeys(documented)) == [check.name for check in CHECKS]


def test_names_are_each_used_once() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_findings_come_in_the_order_of_the_table_each_as_soon_as_those_before_are_there() -> None:
    going_on = threading.Event()

    def second(_: Site) -> Iterator[Finding]:
        going_on.wait(10)
        yield ok("second")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checks, "CHECKS", [Check("a", lambda _: [ok("first")]), Check("b", second)])
        coming = checks.run(SITE)
        assert next(coming) == Told("a", ok("first"))
        going_on.set()
        assert [*coming] == [Told("b", ok("second"))]


def test_a_check_that_hangs_keeps_nobody_from_the_others() -> None:
    ends = threading.Event()

    def hanging(_: Site) -> Iterator[Finding]:
        yield ok("a part")
        ends.wait(20)

    began = time.monotonic()
    first, second, third = told(Check("slow", hanging), Check("quick", lambda _: [ok("well")]), deadline_s=0.2)
    took_s = time.monotonic() - began
    ends.set()
    assert took_s < 10
    assert first == Told("slow", ok("a part"))
    assert (second.finding.result, second.finding.text) == ("warning", "the check did not end within 0.2 s")
    assert third == Told("quick", ok("well"))


def test_a_check_that_fails_is_told_with_where() -> None:
    def failing(_: Site) -> Iterator[Finding]:
        yield ok("a part")
        raise KeyError("nobody thought of this")

    part, failure = told(Check("odd", failing))
    assert part.finding == ok("a part")
    assert failure.finding.result is Result.WARNING
    assert re.match(r"the check itself failed at test_doctor.py:\d+: KeyError", failure.finding.text)


def test_subjects_are_looked_at_by_themselves_and_at_once() -> None:
    meeting = threading.Barrier(64, timeout=20)  # as many as run at once

    def look(_: Site, subject: int) -> Iterator[Finding]:
        if subject < 64:
            meeting.wait()
        yield ok("met", str(subject))

    found = told(Check("many", look, lambda _: range(70)), deadline_s=30)
    assert [one.finding for one in found] == [ok("met", str(number)) for number in range(70)]
    nothing = Check("none", look, lambda _: [], lambda _: skipped("there is none"))
    assert told(nothing) == [Told("none", skipped("there is none"))]


def test_only_what_is_named_is_run() -> None:
    one, other = Check("one", lambda _: [ok("1")]), Check("other", lambda _: [ok("2")])
    assert told(one, other, names=["other"]) == [Told("other", ok("2"))]


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([ok("a"), skipped("b"), warning("c", "d")], 0),
        ([ok("a"), unseen("b")], 1),
        ([unseen("a"), fault("b", "c")], 3),
    ],
)
def test_the_exit_code_tells(findings: Sequence[Finding], code: int) -> None:
    assert command.exit_code(Told("check", finding) for finding in findings) == code


def test_wrong_usage_is_2() -> None:
    assert doctor.run("--only", "nonsense").returncode == 2
    missing = doctor.run("--root", "/nowhere")
    assert missing.returncode == 2
    assert (
        missing.stderr == "brokervol: doctor: /nowhere: there is no such directory, or it is closed to this user\n"
    )


# What is printed


def on_terminal(columns: int, **environment: str) -> str:
    return doctor.on_terminal(columns, "--only", "engine", **environment)


def test_colours_are_for_terminals_only() -> None:
    shown, plain, piped = on_terminal(200), on_terminal(200, NO_COLOR="1"), doctor.run("--only", "engine").stdout
    assert "\x1b[1;31mfault" in shown
    assert "\x1b[1;31m" not in plain
    assert "\x1b" not in piped
    first, cure, empty, summary = piped.splitlines()
    assert first == "fault    engine             no Docker engine answers (no such file or directory)"
    assert cure.startswith(" " * 28 + "cure: `systemctl start docker`")
    assert (empty, summary) == ("", "1 fault, 0 warnings, 0 ok, 0 skipped")


def test_on_a_narrow_terminal_sentences_are_wrapped_in_their_column() -> None:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(80)).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(line[:27].strip() in ("", "fault    engine") for line in lines[:-2])


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
def test_finding_and_cure_are_readable_on_terminals_of_any_width(columns: int) -> None:
    shown = doctor.at_terminal(columns, doctor.command("--only", "engine"), 3)
    assert all(len(line) <= columns for line in shown.splitlines())
    words = " ".join(shown.split())
    assert "no Docker engine answers (no such file or directory)" in words
    assert "cure: `systemctl start docker`" in words


# Checks that no test elsewhere reaches


def with_plugins(*plugins: Plugin, api: str = "1.43", settings: dict[str, str] | None = None) -> Site:
    """A host whose driver does not answer."""
    found = Engine("24.0", api, "/var/lib/docker", True, plugins)
    first = plugins[0] if plugins else None
    return Site(found, Unreachable("none"), first, None, settings or {}, "plugin brokervol:latest", [])


def plugin(name: str, *, is_enabled: bool = True) -> Plugin:
    return Plugin(name * 32, f"{name}:latest", is_enabled, {})


def test_two_plugins_are_one_too_many() -> None:
    (found,) = engine.check_plugin(with_plugins(plugin("a"), plugin("b")))
    assert found.result is Result.WARNING
    assert "2 brokervol plugins are enabled, each with volumes of its own: a:latest, b:latest" in found.text
    (alone,) = engine.check_plugin(with_plugins(plugin("a"), plugin("b", is_enabled=False)))
    assert alone == ok("plugin a:latest is enabled")


def test_an_engine_without_the_plugin() -> None:
    (found,) = engine.check_plugin(with_plugins())
    assert found.result is Result.FAULT
    assert "make install" in found.cure


def test_an_old_engine_is_told() -> None:
    (found,) = engine.check_engine(with_plugins(api="1.40"))
    assert (found.result, found.cure) == (Result.WARNING, "upgrade it to 20.10 or newer")


def test_every_setting_that_is_refused_is_named_and_no_secret_is_told() -> None:
    settings = {
        "NFS_PROBE_S": "0",
        "ALLOWED_HOST_PATHS": "srv",
        "ALLOWED_NFS_SERVERS": "nas:export",
        "DATABASE_URL": "mysql://user:hunter2@host",
    }
    found = [*engine.check_settings(with_plugins(plugin("brokervol"), settings=settings))]
    assert {one.subject for one in found} == {*settings}
    assert all(one.result is Result.FAULT for one in found)
    text = " ".join(one.text + one.cure for one in found)
    assert "NFS_PROBE_S (--nfs-probe-s) is '0'; accepted is a whole number from 1 to 3600" in text
    assert "`docker plugin set brokervol NFS_PROBE_S=30`" in text
    assert "hunter2" not in text


def test_an_engine_that_hangs_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "_TIMEOUT_S", 0.2)
    with temporary_directory() as directory, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(directory / "engine"))
        silent.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{directory}/engine")
        with pytest.raises(NoEngine, match=r"accepts connections, and does not answer within 0\.2 s"):
            asked.look()


class Dripping(socketserver.BaseRequestHandler):
    """Answers a byte now and then, so that no read of it takes long, and never ends."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.sendall(b"HTTP/1.1 200 OK\r\n")
            while not self.server.is_over.wait(0.02):  # type: ignore[attr-defined]
                self.request.sendall(b"x")


@contextlib.contextmanager
def dripping(path: str) -> Iterator[None]:
    class Server(socketserver.ThreadingUnixStreamServer):
        is_over = threading.Event()

    with Server(path, Dripping) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        before = threading.active_count()
        thread.start()
        try:
            yield
        finally:
            server.is_over.set()
            server.shutdown()
            thread.join()
    wait_until(lambda: threading.active_count() <= before, "those who asked have ended")


def test_who_never_ends_an_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_ANSWER_S", 0.3)
    with temporary_directory() as directory, dripping(str(directory / "socket")):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{directory}/socket")
        found = site.find(str(directory / "socket"), str(directory), {})
    assert str(found.engine) == "it does not end its answer within 0.3 s"
    assert str(found.driver) == "the driver hangs (it does not end its answer within 0.3 s): end it"


@pytest.mark.parametrize(
    "body", [b'{"ApiVersion": "1.41"}', b'{"ApiVersion": "1.41", "Version": "1", "DockerRootDir": "/"}']
)
def test_what_is_no_engine_is_told_as_such(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    def script(_: Request, write: Callable[[bytes], object]) -> None:
        write(answer(body))

    with temporary_directory() as directory, scripted_sidecar(str(directory / "socket"), script):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{directory}/socket")
        found = site.find(str(directory / "none"), str(directory), {})
    assert "what answers is no engine" in str(found.engine)


# A driver that answers


DRIVER: dict[str, Any] = {
    "socket": "/run/docker/plugins/brokervol.sock",
    "version": "9.9",
    "pid": os.getpid(),
    "root": "/var/lib/brokervol",
    "volumes": [],
    "problems": [],
}


def with_driver(root: Path | None = None, **changes: Any) -> Site:
    place = None if root is None else str(root)
    return Site(NoEngine("none"), {**DRIVER, **changes}, None, place, {}, "environment", [])


def test_volumes_that_do_not_work_are_named() -> None:
    problems = [
        {"subject": "volume old", "health": "unusable", "reason": "option tape is unknown"},
        {"subject": "volume far", "health": "stale", "reason": "the server does not know it any more"},
        {"subject": "NFS server nas", "health": "unreachable", "reason": "which nfs-server tells"},
    ]
    old, far = service.check_volumes(with_driver(problems=problems))
    assert (old.subject, old.text) == ("old", "volume old is unusable: option tape is unknown")
    assert "`docker volume rm old`" in old.cure
    assert (far.subject, far.result) == ("far", Result.FAULT)
    assert "docker restart" in far.cure


def test_a_driver_without_its_capabilities() -> None:
    without = ["setpriv", "--reuid", "65534", "--clear-groups", "--"] if os.geteuid() == 0 else []
    with subprocess.Popen(
        [*without, "sh", "-c", "echo up; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as it:
        assert it.stdout is not None
        it.stdout.readline()
        (found,) = host.check_driver_privileges(with_driver(pid=it.pid))
        it.communicate(timeout=20)
    assert found.result is Result.FAULT
    assert "the driver lacks CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH" in found.text
    assert "--grant-all-permissions" in found.cure


def test_a_sidecar_that_is_not_there_or_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_TIMEOUT_S", 0.2)
    with temporary_directory() as root:
        (missing,) = service.check_sidecar(with_driver(root))
        (root / "sidecar").mkdir()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(root / "sidecar/broker.sock"))
            (refused,) = service.check_sidecar(with_driver(root))
            listening.listen()
            (silent,) = service.check_sidecar(with_driver(root))
    assert missing.text == f"the sidecar has no socket {root}/sidecar/broker.sock"
    assert "(connection refused)" in refused.text
    assert "(timed out)" in silent.text
    assert all("brokervol logs" in found.cure for found in (missing, refused, silent))


def test_the_clock_is_compared_with_the_services() -> None:
    def found(ahead_s: float) -> Finding:
        class Service(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(403)
                self.send_header("Date", formatdate(time.time() + ahead_s, usegmt=True))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Service) as server:
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            (finding,) = s3.check_clock(SITE, f"http://127.0.0.1:{server.server_port}")
            thread.join()
        return finding

    assert [found(ahead_s).result.value for ahead_s in (1, -300, 1200)] == ["ok", "warning", "fault"]


def test_a_kernel_without_an_nfs_client_matters_only_to_nfs_volumes() -> None:
    (found,) = host.check_nfs_client(SITE)
    assert found == skipped("no volume of type nfs is defined")


def test_the_sdk_is_told_what_the_sidecar_is() -> None:
    settings = {"AWS_CA_BUNDLE": "/etc/ca.pem", "AWS_DEFAULT_REGION": "", "BROKERVOL_CREDENTIALS": "/etc/keys"}
    assert s3.environment(settings) == {
        "AWS_CA_BUNDLE": "/etc/ca.pem",
        "AWS_SHARED_CREDENTIALS_FILE": "/etc/keys",
        "AWS_MAX_ATTEMPTS": "1",
    }
    assert s3.credentials_file({}) == "/etc/brokervol/credentials"


# NFS servers, in a network of the test's own


def volumes_of(*places: str) -> tuple[NfsOptions, ...]:
    parsed = [parse({"type": "nfs", "nfs_path": place}) for place in places]
    return tuple(options for options in parsed if isinstance(options, NfsOptions))


@contextlib.contextmanager
def answering(port: int, *results: bytes) -> Iterator[None]:
    """Calls of RPC that come to this port of the loopback are answered one after the other with these results."""

    def serve() -> None:
        for result in results:
            connection, _ = listener.accept()
            with connection:
                call = connection.recv(1 << 16)
                reply = call[4:8] + struct.pack(">5I", 1, 0, 0, 0, 0) + result
                connection.sendall(struct.pack(">I", 0x80000000 | len(reply)) + reply)

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(20)


def switch_loopback_on() -> None:
    with IPRoute() as routes:
        routes.link("set", index=1, state="up")


def opaque(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text + bytes(-len(text) % 4)


@pytest.mark.root
@in_private_network
def test_what_a_server_exports_is_compared_with_what_volumes_are_of() -> None:
    switch_loopback_on()
    exports = b"".join(struct.pack(">I", 1) + opaque(path) + bytes(4) for path in (b"/srv", b"/data/x")) + bytes(4)
    found: list[Finding] = []
    for places in (["/srv/a", "/data/x"], ["/srv", "/data"]):
        with answering(111, struct.pack(">I", 2050)), answering(2050, exports):
            found += nfs.check_exports(SITE, volumes_of(*(f"127.0.0.1:{place}" for place in places)))
    listed, unlisted = found
    assert listed == ok("127.0.0.1 says that it exports /srv/a, /data/x", "127.0.0.1")
    assert unlisted.result is Result.WARNING
    assert "127.0.0.1 says that it exports /srv, /data/x, and not /data" in unlisted.text
    assert "`exportfs -ra`" in unlisted.cure


@pytest.mark.root
@in_private_network
def test_a_server_that_answers_and_one_that_is_not_allowed() -> None:
    switch_loopback_on()
    with answering(2049, struct.pack(">3I", 10004, 0, 0)):  # NFS4ERR_NOTSUPP, an answer
        (well,) = nfs.check_server(SITE, volumes_of("127.0.0.1:/srv"))
    assert re.fullmatch(r"127\.0\.0\.1 answers over lo from 127\.0\.0\.1 in \d+ ms", well.text)
    allowed = replace(SITE, settings={"ALLOWED_NFS_SERVERS": "nas"})
    (refused,) = nfs.check_server(allowed, volumes_of("127.0.0.1:/srv"))
    assert "ALLOWED_NFS_SERVERS of this host allows nas" in refused.text
    elsewhere = replace(SITE, settings={"ALLOWED_NFS_SERVERS": "10.0.0.0/8"})
    (outside,) = nfs.check_server(elsewhere, volumes_of("localhost:/srv"))
    assert outside.result is Result.FAULT
    assert "localhost is at an address that ALLOWED_NFS_SERVERS does not have" in outside.text
