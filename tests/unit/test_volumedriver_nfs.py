"""What is told of an NFS mount that failed: one sentence, with the step, the fact and what to do."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from volumedriver import nfs_failures
from volumedriver.api import _health
from volumedriver.driver import Driver
from volumedriver.errors import DriverError, InvalidVolume, MountFailed, NfsServerRefused, NfsUnavailable
from volumedriver.health import ServerHealth, State
from volumedriver.nfs import NfsMounts, NfsSource
from volumedriver.nfs_request import Request
from volumedriver.nfs_servers import Servers
from volumedriver.options import NfsOptions, parse
from volumedriver.rpc import MOUNT
from volumedriver.status import Status
from volumedriver.volume import Volume
from volumedriver.workers import NoAnswer, NoWorker, Workers

Facts = Mapping[str, Any]
ADDRESS = {"address": "10.0.0.5"}


class Scripted(Workers):
    """Answers with what it is given, or raises it. Starts no process."""

    def __init__(self, outcome: Facts | Exception | None) -> None:
        super().__init__()
        self.outcome = outcome
        self.request: Facts = {}
        self.timeout_s = 0.0

    def run(self, request: Facts, timeout_s: float, fds: Sequence[int] = ()) -> Facts:
        self.request, self.timeout_s = request, timeout_s
        assert all(fd == 0 for fd in fds)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome or {}

    def run_and_leave(self, request: Facts, patience_s: float, limit_s: float) -> Facts | None:
        self.request, self.timeout_s = request, limit_s
        assert patience_s < limit_s
        assert not isinstance(self.outcome, Exception)
        return self.outcome


def source(
    options: Mapping[str, str] | None = None, *, deadline: float | None = None, networks: list[str] | None = None
) -> NfsSource:
    parsed = parse({"nfs_path": "nas:/data/a", **(options or {})})
    assert isinstance(parsed, NfsOptions)
    return NfsSource(parsed, networks, deadline)


def failure(outcome: Facts | Exception, **options: str) -> DriverError:
    with pytest.raises(DriverError) as failed:
        NfsMounts(Scripted(outcome)).mount(source(options), 0, read_only=False)
    assert str(failed.value).startswith("cannot mount nas:/data/a: ")
    assert str(failed.value).isprintable()
    return failed.value


def system(code: int, **facts: Any) -> Facts:
    return {"errno": code, "reason": os.strerror(code), **facts}


FAILURES: list[tuple[Facts, type[DriverError], str]] = [
    (
        {"failed": "resolve", "reason": "Name or service not known"},
        NfsUnavailable,
        "name nas is not known here (Name",
    ),
    (
        {"failed": "refuse", "addresses": ["10.0.0.5"], "networks": ["192.168.0.0/16"]},
        NfsServerRefused,
        "nas is at 10.0.0.5, and ALLOWED_NFS_SERVERS of this host allows this path in 192.168.0.0/16 only",
    ),
    (
        system(errno.EHOSTUNREACH, failed="connect", port=2049, address="127.0.0.1"),
        NfsUnavailable,
        "nas (127.0.0.1) cannot be reached (No route to host): it is down, or the network there",
    ),
    (
        system(errno.ECONNREFUSED, failed="connect", port=2049, **ADDRESS),
        NfsUnavailable,
        "nas (10.0.0.5) refuses connections to port 2049: no NFS server runs there",
    ),
    (
        system(errno.ECONNREFUSED, failed="connect", port=111, **ADDRESS),
        NfsUnavailable,
        "rpcbind, which NFSv3 needs",
    ),
    (
        system(errno.ETIMEDOUT, failed="connect", port=2049, **ADDRESS),
        NfsUnavailable,
        "cannot be reached on port 2049",
    ),
    (
        {"failed": "ask", "reason": "the answer is no RPC", "port": 2049, **ADDRESS},
        NfsUnavailable,
        "what answers on port 2049 of nas (10.0.0.5) is no NFS service: the answer is no RPC",
    ),
    (
        {"failed": "version", "asked": ["4.2", "4.1"], "served": [2, 3], **ADDRESS},
        MountFailed,
        "does not serve NFS version 4.2 or 4.1, but 2 to 3: give another vers",
    ),
    (
        {"failed": "version", "asked": ["3"], "is_udp": True, **ADDRESS},
        MountFailed,
        "version 3 over UDP: give another",
    ),
    (
        {"failed": "path", "parent": "/", "missing": "data/a", "exports": None},
        InvalidVolume,
        "is not exported to this",
    ),
    (
        {"failed": "path", "parent": "", "missing": "data/a", "exports": []},
        InvalidVolume,
        "that it exports nothing",
    ),
    (
        {"failed": "path", "parent": "/", "missing": "data/a", "exports": [f"/{n}" for n in range(9)]},
        InvalidVolume,
        "nas has no /data/a for this host: the server says that it exports /0, /1, /2, /3, /4 and 4 more",
    ),
    (
        {"failed": "path", "parent": "/", "missing": "data/a", "exports": ["/data"], "local": "10.0.0.7"},
        InvalidVolume,
        "it is exported, but not to this host's address (10.0.0.7), or not with this security",
    ),
    (
        {"failed": "path", "parent": "/data", "missing": "a\x1b[2J", "exports": None},
        InvalidVolume,
        r"on nas there is no 'a\x1b[2J' in /data: make it",
    ),
    (
        system(errno.EACCES, failed="create", directory="/data/a"),
        MountFailed,
        "cannot be made: Permission denied; where",
    ),
    (
        system(errno.EROFS, failed="create", directory="/data/a"),
        MountFailed,
        "Read-only file system; the export is",
    ),
    (
        system(errno.ENOSPC, failed="create", directory="/data/a"),
        MountFailed,
        "cannot be made: No space left on device",
    ),
    (
        system(errno.EINVAL, failed="option", option="nconnect=4", said=["NFS: unknown"]),
        MountFailed,
        "this host's kernel refuses the mount option nconnect=4 (Invalid argument: NFS: unknown)",
    ),
    ({"failed": "statd", "reason": "why"}, MountFailed, "NFSv3 locks need rpc.statd on this host (why)"),
    (
        {"failed": "family", "proto": "tcp6"},
        MountFailed,
        "nas has no IPv6 address, which proto=tcp6 in mount_options asks for: leave proto out",
    ),
    (
        system(errno.ECONNREFUSED, failed="connect", port=9, program=MOUNT, is_given=True, **ADDRESS),
        MountFailed,
        "refuses connections to port 9: mountport=9 in mount_options is not where its mount service is",
    ),
    (
        system(errno.ECONNREFUSED, failed="connect", port=9, program=MOUNT, is_given=False, **ADDRESS),
        NfsUnavailable,
        "no mount service (rpc.mountd) runs there",
    ),
    (
        system(errno.ENODEV, failed="kernel"),
        MountFailed,
        "kernel has no NFS client (No such device): load its module",
    ),
    (
        system(errno.EACCES, failed="mount", local="10.0.0.7", exports=["/data"], **ADDRESS),
        MountFailed,
        "nas (10.0.0.5) denies /data/a to this host: it is exported, but not to this host's address (10.0.0.7)",
    ),
    (system(errno.ESTALE, failed="mount", said=["NFS: x", "y"], **ADDRESS), MountFailed, "file handle: NFS: x; y"),
    (
        {"failed": "link", "at": "/data/a", "target": "../secret", **ADDRESS},
        NfsServerRefused,
        "it passes through the symbolic link /data/a -> ../secret on nas (10.0.0.5); give the real path",
    ),
    (
        {"failed": "link", "at": "/data/a", "target": None, **ADDRESS},
        NfsServerRefused,
        "the symbolic link /data/a on nas (10.0.0.5); give the real path",
    ),
    (
        {"failed": "referral", "to": "10.0.0.9", "source": "10.0.0.9:/x", **ADDRESS},
        NfsServerRefused,
        "nas (10.0.0.5) refers it to another server (refer=), 10.0.0.9: give 10.0.0.9:/x as nfs_path",
    ),
    (
        system(errno.EHOSTUNREACH, failed="walk", parent="/data", at="/data/a", **ADDRESS),
        NfsUnavailable,
        "nas (10.0.0.5) refers /data/a to another server (refer=), which cannot be reached (No route",
    ),
    (
        system(errno.EACCES, failed="walk", parent="/", prefix=None, local=None, exports=["/data"], **ADDRESS),
        MountFailed,
        "nas (10.0.0.5) denies /data/a to this host: it is exported, but not to this host's address",
    ),
    (
        system(errno.EACCES, failed="walk", parent="/data", at="/data/a", prefix=None, **ADDRESS),
        MountFailed,
        "nas (10.0.0.5) lets root of this host go no further than /data: let others pass there",
    ),
    (
        system(errno.EACCES, failed="walk", parent="/data", prefix="/data", **ADDRESS),
        NfsServerRefused,
        "NFSv3 does not show whether this path stays in /data, which ALLOWED_NFS_SERVERS of this host allows: let",
    ),
    (
        system(errno.ENOTDIR, failed="walk", parent="/data", at="/data/a", **ADDRESS),
        MountFailed,
        "/data/a on nas (10.0.0.5) cannot be entered: Not a directory",
    ),
    (
        {"failed": "unproven", "prefix": "/data", **ADDRESS},
        NfsServerRefused,
        "nas (10.0.0.5) neither gives this host /data nor says what it exports",
    ),
    (
        system(errno.EPERM, failed="namespace"),
        MountFailed,
        "lets the driver have no mount namespace of its own (Operation not permitted)",
    ),
    (system(errno.EBUSY, failed="attach"), MountFailed, "Device or resource busy"),
]


@pytest.mark.parametrize(("facts", "kind", "said"), FAILURES)
def test_failures(facts: Facts, kind: type[DriverError], said: str) -> None:
    failed = failure({"done": True, **facts})
    assert type(failed) is kind
    assert said in str(failed)


def test_every_step_is_explained() -> None:
    assert {*nfs_failures._EXPLANATIONS} <= {facts["failed"] for facts, _, _ in FAILURES}


def test_kerberos() -> None:
    facts = system(errno.EINVAL, failed="mount", said=[], **ADDRESS)
    assert "did not agree on sec=krb5p" in str(failure(facts, mount_options="sec=krb5p"))
    assert "did not agree" not in str(failure(facts))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"step": "resolve"}, "this host's name servers do not say within 20 s what nas is"),
        ({"step": "connect", "port": 2049, **ADDRESS}, "nas (10.0.0.5) does not answer on port 2049 within 20 s"),
        ({"step": "ask", "port": 2049, **ADDRESS}, "port 2049 but answers no request within 20 s"),
        (
            {"step": "ask", "call": "CREATE_SESSION", "port": 2049, **ADDRESS},
            "on port 2049 but does not answer CREATE_SESSION within 20 s: its NFS service hangs",
        ),
        ({"step": "ask", "port": 111, **ADDRESS}, "answers no request within 20 s: its rpcbind hangs"),
        ({"step": "statd"}, "rpcbind of this host does not answer within 20 s"),
        ({"step": "mount", "version": "4.1", **ADDRESS}, "did not let the mount with NFS 4.1 end within 20 s"),
        ({"step": "walk", "path": "/data/a", **ADDRESS}, "but the way to /data/a on it did not end within 20 s"),
        ({}, "the worker process did not begin within 20 s: this host is overloaded"),
    ],
)
def test_the_step_that_did_not_end(step: Facts, said: str) -> None:
    failed = failure(NoAnswer(step))
    assert type(failed) is NfsUnavailable
    assert said in str(failed)


def test_a_worker_that_died() -> None:
    assert "a worker died at mount" in str(failure(NoWorker(32, "a worker died at mount")))
    assert "no worker process can be started" in str(failure(NoWorker("no worker process can be started")))


def test_the_request_is_what_a_worker_reads() -> None:
    workers = Scripted({"version": "4.2", "address": "10.0.0.5"})
    options = {"mount_options": "vers=3,proto=udp,soft", "create": "true", "mode": "0700", "uid": "7"}
    NfsMounts(workers).mount(source(options, networks=["10.0.0.0/8"]), 0, read_only=True)
    request = Request(**workers.request["mount"])
    assert (request.server, request.path, request.versions, request.proto) == ("nas", "/data/a", ("3",), "udp")
    assert request.creation == (0o700, 7, 0)
    assert request.networks == ["10.0.0.0/8"]
    assert [*request.options] == [("soft", None)]
    assert request.attributes & 1, "read-only"


def test_the_deadline_of_the_call_goes_before_the_time_of_a_mount() -> None:
    workers = Scripted({"version": "4.2", "address": "10.0.0.5"})
    for left_s, expected_s in ((100, 20), (5, 5), (-5, 1)):
        NfsMounts(workers).mount(source(deadline=time.monotonic() + left_s), 0, read_only=False)
        assert workers.timeout_s == pytest.approx(expected_s, abs=0.5)


def test_detaching_does_not_wait_for_an_answer_but_tells_a_failure() -> None:
    NfsMounts(Scripted(None)).detach("/x")
    NfsMounts(Scripted({"detached": True, "done": True})).detach("/x")
    with pytest.raises(OSError, match="Device or resource busy"):
        NfsMounts(Scripted(system(errno.EBUSY, failed="attach"))).remove("/x")


def mounted_twice(outcome: Facts | Exception) -> tuple[Servers, list[str]]:
    """Two mounts of one server: what is known of it then, and the sentences of those that failed."""
    servers, sentences = Servers(), []
    servers.begin_probing()
    workers = Scripted(outcome)
    for place in ("nas:/data/a", "nas:/other"):
        workers.request = {}
        with pytest.raises(DriverError, match=f"^cannot mount {place}: ") as failed:
            NfsMounts(workers, servers=servers).mount(source({"nfs_path": place}), 0, read_only=False)
        sentences.append(str(failed.value))
    assert bool(workers.request) == (not servers.report()[0].is_open), "who is refused at once asks nobody"
    return servers, sentences


DEAD = ("resolve", "connect", "ask")
ALIVE = ("path", "create", "mount", "walk", "link", "referral", "unproven")


@pytest.mark.parametrize("facts", [facts for facts, _, _ in FAILURES])
def test_what_a_failure_tells_of_the_server(facts: Facts) -> None:
    servers, sentences = mounted_twice({"done": True, **facts})
    (health,) = servers.report()
    assert health.is_open == (facts["failed"] in DEAD and not facts.get("is_given"))
    assert ("so it has been since" in sentences[1]) == health.is_open
    is_alive = facts["failed"] in ALIVE or "served" in facts
    expected = State.UNREACHABLE if health.is_open else State.HEALTHY if is_alive else State.UNKNOWN
    assert health.state is expected


def test_a_way_that_does_not_end_is_not_the_fault_of_a_server_that_has_answered() -> None:
    servers, sentences = mounted_twice(NoAnswer({"step": "walk", "path": "/data/a", **ADDRESS}))
    assert not servers.report()[0].is_open
    assert all("or it refers to another server (refer=) that does not answer" in said for said in sentences)


@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH])
def test_a_kernel_that_did_not_reach_the_server_tells_as_much(code: int) -> None:
    servers, _ = mounted_twice(system(code, failed="mount", said=[], **ADDRESS))
    assert servers.report()[0].is_open


@pytest.mark.parametrize(
    ("step", "is_open"),
    [
        ({"step": "resolve"}, True),
        ({"step": "connect", "port": 2049, "address": "127.0.0.1"}, True),
        ({"step": "ask", "port": 2049, **ADDRESS}, True),
        ({"step": "mount", "version": "4.1", **ADDRESS}, False),  # it had answered a moment before: it is asked
        ({"step": "begin"}, False),
        ({}, False),
    ],
)
def test_silence_tells_of_the_server_once_it_was_asked(step: Facts, is_open: bool) -> None:
    servers, sentences = mounted_twice(NoAnswer(step))
    assert servers.report()[0].is_open == is_open
    assert "within 20 s" in sentences[1]


@pytest.mark.parametrize(
    ("outcome", "is_probed"),
    [
        (NoAnswer({"step": "ask", "call": "SEQUENCE"}), True),
        (NoAnswer({"step": "ask"}), False),
        (NoWorker("this host is overloaded"), False),
    ],
)
def test_a_server_that_is_slow_when_looked_at_is_probed_at_once(outcome: Exception, is_probed: bool) -> None:
    now, workers = [1000.0], Scripted(outcome)
    servers = Servers(clock=lambda: now[0], uptime=lambda: 1e6)
    servers.begin_probing()
    servers.failed(source(), "it is down", now[0])
    now[0] += 0.5
    assert servers.due() == []
    with pytest.raises(DriverError, match="it is down; so it has been since"):
        NfsMounts(workers, servers=servers).mount(source(), 0, read_only=False)
    assert workers.request["do"] == "probe"
    assert bool(servers.due()) == is_probed


def test_a_worker_that_died_tells_nothing_of_the_server() -> None:
    servers, _ = mounted_twice(NoWorker("no worker process can be started"))
    assert servers.report()[0].state is State.UNKNOWN


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        ({"took_s": 0.001, "address": "127.0.0.9", "port": 2049}, State.HEALTHY),
        ({"took_s": 1.5, "address": "127.0.0.9", "port": 2049}, State.SLOW),
        ({"failed": "refuse", "addresses": [], "networks": ["10.0.0.0/8"]}, State.UNKNOWN),
        (system(errno.ECONNREFUSED, failed="connect", port=2049, address="127.0.0.9"), State.UNREACHABLE),
        (NoAnswer({"step": "ask", "port": 2049, "address": "127.0.0.9"}), State.SLOW),
        (NoAnswer({"step": "begin"}), State.UNKNOWN),
        (NoWorker("no worker process can be started"), State.UNKNOWN),
    ],
)
def test_a_probe(outcome: Facts | Exception, state: State) -> None:
    servers, workers = Servers(), Scripted(outcome)
    servers.use([source()])
    NfsMounts(workers, servers=servers).probe(source())
    assert workers.timeout_s == 5
    assert Request(**workers.request["probe"]).server == "nas"
    (health,) = servers.report()
    assert health.state is state
    if state is State.HEALTHY:
        assert (health.round_trip_ms, health.retransmits) == (1.0, None)


def health(server: ServerHealth | None, stale: str = "") -> Mapping[str, Any]:
    """What is told of a volume of the server."""

    class Known(Servers):
        def health(self, options: NfsOptions) -> ServerHealth | None:
            del options
            return server

    volume = Volume("data", source().options, datetime(2026, 1, 1, tzinfo=UTC), "/mnt", stale=stale)
    return _health(Status(cast("Driver", None), Known(), Workers(), "").health(volume))


def test_how_a_volume_does() -> None:
    server = ServerHealth(
        "nas", State.HEALTHY, datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC), "", 1.0, 0, is_open=False
    )
    gone = server._replace(state=State.UNREACHABLE, reason="it is down")
    told = [health(server), health(gone), health(server, "pid 7 has it"), health(None)]
    assert [each["health"] for each in told] == [
        "healthy",
        "unreachable since 2026-05-04T03:02:01Z",
        "stale",
        "unknown",
    ]
    reasons = ["", "it is down", "pid 7 has it", "no volume of this server is mounted"]
    assert [each["health_reason"] for each in told] == reasons
