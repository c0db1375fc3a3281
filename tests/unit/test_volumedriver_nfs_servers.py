"""What is remembered of NFS servers: who is refused at once, who is probed and when, and what is told of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from lab.processes import wait_until
from volumedriver import nfs_servers
from volumedriver.health import ServerHealth, State
from volumedriver.nfs import NfsSource
from volumedriver.nfs_servers import Refused, Servers, Service
from volumedriver.options import NfsOptions, parse

AT_ONCE, MOST = 16, 128
LONG_S = 1e9


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def source(nfs_path: str = "nas:/data", mount_options: str = "") -> NfsSource:
    parsed = parse({"nfs_path": nfs_path, "mount_options": mount_options})
    assert isinstance(parsed, NfsOptions)
    return NfsSource(parsed, None)


NAS = source()


class Known:
    """Servers with a clock of their own, long after boot; nobody waits in fact."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.uptime_s = 1e6
        self.servers = Servers(clock=self.clock, uptime=lambda: self.uptime_s)
        self.servers.begin_probing()

    def turn(self, source: NfsSource = NAS, wait_s: float = 0) -> AbstractContextManager[None]:
        return self.servers.turn(source, self.clock.now + wait_s)

    def refusal(self, source: NfsSource = NAS) -> str:
        with pytest.raises(Refused) as refused, self.turn(source):
            pass
        return str(refused.value)

    def fail(self, reason: str = "it is down") -> None:
        self.servers.failed(NAS, reason, self.clock.now)

    def answer(self) -> None:
        self.servers.answered(NAS)

    def miss(self) -> None:
        self.servers.missed(NAS, "it does not answer", self.clock.now)

    def probe(self, outcome: Callable[[], None]) -> float:
        """Let time go by until the server is due, and probe it; returns how long that was."""
        before = self.clock.now
        while not (due := self.servers.due()):
            pause_s = self.servers.pause_s()
            assert pause_s
            self.clock.now += pause_s
        assert due == [NAS]
        outcome()
        self.servers.probed(NAS)
        return self.clock.now - before

    @property
    def health(self) -> ServerHealth:
        (health,) = self.servers.report()
        assert self.servers.health(NAS.options) == health
        return health


@pytest.fixture
def known() -> Known:
    return Known()


def test_a_dead_server_is_refused_at_once_until_it_answers(known: Known) -> None:
    with known.turn():
        known.fail("nas refuses connections")
    assert known.refusal().startswith("nas refuses connections; so it has been since 20")
    assert "is asked again every 1 s, and a mount can be tried again when it answers" in known.refusal()
    assert (known.health.state, known.health.is_open) == (State.UNREACHABLE, True)
    known.servers.answered(NAS)
    with known.turn():
        assert (known.health.state, known.health.is_open, known.health.reason) == (State.HEALTHY, False, "")


def test_what_nobody_would_close_does_not_open() -> None:
    servers = Servers()
    servers.failed(NAS, "it is down", 1e9)
    with servers.turn(NAS, 0):
        assert [(health.state, health.is_open) for health in servers.report()] == [(State.UNREACHABLE, False)]


def test_a_mount_that_began_before_the_last_answer_knows_less(known: Known) -> None:
    began = known.clock.now
    known.clock.now += 5
    known.servers.answered(NAS)
    known.clock.now += 5
    known.servers.failed(NAS, "it did not answer", began)
    with known.turn():
        assert known.health.state is State.HEALTHY


def test_probes_come_ever_less_often_unless_somebody_asks(known: Known) -> None:
    known.servers.use([NAS])
    known.fail()
    assert [known.probe(known.fail) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    known.clock.now += 5
    known.refusal()
    assert known.probe(known.fail) == 0, "at once: it may have been mended"
    assert [known.probe(known.fail) for _ in range(3)] == [2, 2, 2]
    assert "every 2 s" in known.refusal()
    known.clock.now += 31
    known.probe(known.fail)
    assert known.probe(known.fail) == 30


def test_a_mounted_server_is_probed_as_long_as_it_is_mounted(known: Known) -> None:
    assert known.servers.pause_s() is None
    known.servers.use([NAS])
    assert known.probe(known.answer) == 0, "nothing is known of it"
    assert [known.probe(known.answer) for _ in range(3)] == [30, 30, 30]
    known.servers.use([])
    known.clock.now += 40
    assert known.servers.due() == []


def test_who_is_not_asked_for_is_forgotten(known: Known) -> None:
    known.fail()
    known.refusal()
    while known.servers.report():
        assert known.clock.now < 1000 + 700
        known.probe(known.fail)
        known.servers.use([])
    assert known.servers.pause_s() is None
    assert known.servers.health(NAS.options) is None
    assert known.clock.now > 1000 + 600


def test_one_probe_that_is_late_is_slow_and_two_are_silence(known: Known) -> None:
    known.servers.use([NAS])
    known.servers.answered(NAS)
    assert known.probe(known.miss) == 30
    assert (known.health.state, known.health.reason, known.health.is_open) == (
        State.SLOW,
        "it does not answer",
        False,
    )
    assert known.probe(known.miss) == 2
    assert (known.health.state, known.health.is_open) == (State.UNREACHABLE, True)


@pytest.mark.parametrize(
    ("probe_ms", "round_trip_ms", "retransmits", "reason"),
    [
        (1.0, None, None, ""),
        (1.0, 0.2, 14, ""),
        (1500.0, 0.2, 10, "it took 1.5 s to answer a request that asks for nothing"),
        (1.0, 1200.0, 10, "the round trip to it takes 1.2 s"),
        (1.0, 0.2, 15, "5 segments had to be sent to it again since the last look"),
    ],
)
def test_slow(
    known: Known, probe_ms: float, round_trip_ms: float | None, retransmits: int | None, reason: str
) -> None:
    known.servers.answered(NAS)
    known.servers.measured(NAS, 1.0, 0.2, 10)
    known.servers.measured(NAS, probe_ms, round_trip_ms, retransmits)
    health = known.health
    assert (health.state, health.reason) == (State.SLOW if reason else State.HEALTHY, reason)
    assert health.round_trip_ms == (round_trip_ms if round_trip_ms is not None else probe_ms)
    known.servers.answered(NAS)
    assert known.health.state is health.state, "a mount does not know"
    known.servers.measured(NAS, 1.0, 0.2, retransmits)
    assert known.health.state is State.HEALTHY


def test_of_one_server_so_many_mounts_run_and_the_next_wait(known: Known) -> None:
    with contextlib.ExitStack() as running:
        for _ in range(AT_ONCE):
            running.enter_context(known.turn())
        assert "16 other mounts of nas were under way for all the time that this one had" in known.refusal()
        with known.turn(source("other:/data")):
            pass
        with ThreadPoolExecutor(MOST) as pool:
            waiting = [pool.submit(_took_turn, known) for _ in range(MOST - AT_ONCE)]
            wait_until(lambda: _waiting(known) == MOST - AT_ONCE, "all of them wait")
            assert "128 other mounts of nas wait already: try again when they have ended" in known.refusal()
            with known.turn(source("other:/data")):
                pass
            running.close()
            assert all(future.result() for future in waiting)
    with known.turn():
        pass


@contextlib.contextmanager
def those_who_wait(known: Known, count: int) -> Iterator[list[Future[bool]]]:
    """So many mounts, while as many run as may."""
    with contextlib.ExitStack() as running, ThreadPoolExecutor(count) as pool:
        for _ in range(AT_ONCE):
            running.enter_context(known.turn())
        waiting = [pool.submit(_took_turn, known) for _ in range(count)]
        wait_until(lambda: _waiting(known) == count, "all of them wait")
        yield waiting


def test_those_who_wait_are_refused_when_the_server_is_found_dead(known: Known) -> None:
    with those_who_wait(known, 20) as waiting:
        known.fail("it is down")
        assert all(str(future.exception()).startswith("it is down; so it has been since") for future in waiting)


def test_so_many_wait_for_all_servers_that_are_not_known_to_be_well(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nfs_servers, "MOST_DOUBTFUL", 30)
    with contextlib.ExitStack() as running:
        for number in range(30):
            running.enter_context(known.turn(source(f"n{number % 3}:/data")))
        assert "30 mounts wait already for NFS servers that do not answer: try again later" in known.refusal()
        known.servers.answered(NAS)
        with known.turn():
            known.servers.answered(source("n1:/data"))


def _took_turn(known: Known) -> bool:
    with known.turn(wait_s=LONG_S):
        return True


def _waiting(known: Known) -> int:
    with known.servers._lock:
        return known.servers._records[Service.of(NAS.options)].waiting


def test_soon_after_boot_a_mount_waits_for_its_server(known: Known) -> None:
    deadline = known.clock.now + LONG_S
    known.fail()
    assert not known.servers.is_awaited(NAS, deadline)
    known.uptime_s = 60
    assert known.servers.is_awaited(NAS, deadline)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_took_turn, known)
        wait_until(lambda: _waiting(known) == 1, "it waits")
        known.probe(known.fail)
        assert not waiting.done()
        known.probe(known.answer)
        assert waiting.result()
    known.fail("no way")
    assert known.refusal().startswith("no way; so it has been"), "its time is over"


def test_the_first_who_would_be_refused_looks_for_all(known: Known) -> None:
    """So that the mount of somebody who has just mended the server succeeds."""
    assert not known.servers.begin_look(NAS), "nothing is known"
    known.fail()
    assert not known.servers.begin_look(NAS), "that was a moment ago"
    known.clock.now += 1
    assert known.servers.begin_look(NAS)
    assert not known.servers.begin_look(NAS), "another one looks"
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(_took_turn, known) for _ in range(2)]
        wait_until(lambda: _waiting(known) == 2, "they wait for what it sees")
        known.servers.looked(NAS)
        assert all("so it has been since" in str(future.exception()) for future in waiting)
        assert not known.servers.begin_look(NAS), "that was a moment ago"
        known.clock.now += 1
        assert known.servers.begin_look(NAS)
        waiting = [pool.submit(_took_turn, known) for _ in range(2)]
        wait_until(lambda: _waiting(known) == 2, "they wait again")
        known.answer()
        known.servers.looked(NAS)
        assert all(future.result() for future in waiting)
    known.fail()
    known.clock.now += 1
    known.uptime_s = 60
    assert not known.servers.begin_look(NAS), "soon after boot all wait for the probes"


def test_a_mount_that_hung_has_the_server_asked_before_it_is_called_dead(known: Known) -> None:
    for is_answered in (True, False):
        known.servers.suspect(NAS, "its disks hang")
        assert known.servers.is_doubtful(NAS)
        assert (known.health.state, known.health.is_open) == (State.SLOW, False)
        assert known.probe(known.answer if is_answered else known.miss) == 0
        assert known.health.is_open != is_answered


def test_nobody_waits_for_a_turn_in_a_driver_that_ends(known: Known) -> None:
    with those_who_wait(known, 2) as waiting:
        known.servers.close()
        assert {str(future.exception()) for future in waiting} == {"the driver is ending"}
    assert known.refusal() == "the driver is ending"


def test_a_link_that_changed_has_the_server_probed(known: Known) -> None:
    known.servers.use([NAS])
    known.probe(known.answer)
    known.servers.wake.clear()
    known.servers.hurry(known.servers.known()[0])
    assert known.servers.wake.is_set()
    assert known.probe(known.fail) == 0
    assert known.health.is_open


def test_addresses_are_known_of_who_was_met_and_of_addresses(known: Known) -> None:
    assert known.servers.addresses(NAS) == ()
    known.servers.answered(NAS, ["10.0.0.5"])
    known.servers.answered(NAS)
    assert known.servers.addresses(NAS) == ("10.0.0.5",)
    assert known.servers.addresses(source("[fe80::1%eth0]:/x")) == ("fe80::1%eth0",)


@pytest.mark.parametrize(
    ("nfs_path", "mount_options", "text"),
    [
        ("nas:/a", "", "nas"),
        ("nas:/b", "vers=4.1,soft,port=2049,proto=tcp", "nas"),
        ("nas:/b", "port=20049", "nas:20049"),
        ("[fd00::1]:/b", "port=20049", "[fd00::1]:20049"),
        ("fd:/b", "vers=3", "fd (NFSv3)"),
        ("nas:/b", "vers=3,port=2049,proto=udp6", "nas:2049 (NFSv3, udp6)"),
        ("nas:/b", "proto=tcp6", "nas (tcp6)"),
    ],
)
def test_what_is_one_server(nfs_path: str, mount_options: str, text: str) -> None:
    assert Service.of(source(nfs_path, mount_options).options).text == text


class Breaker(RuleBasedStateMachine):
    """Whatever happens in whatever order: refused is who must be, admitted everybody else, and nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.known = Known()
        self.running: list[contextlib.ExitStack] = []
        self.answered_at = 0.0
        self.is_open = False
        self.misses = 0
        self.is_probed = False

    @rule(seconds=st.floats(0, 100))
    def time_goes_by(self, seconds: float) -> None:
        self.known.clock.now += seconds

    @rule(ago_s=st.floats(0, 30))
    def mount_fails(self, ago_s: float) -> None:
        self.known.servers.failed(NAS, "it is down", self.known.clock.now - ago_s)
        self.is_open = self.is_open or self.answered_at <= self.known.clock.now - ago_s

    @rule()
    def server_answers(self) -> None:
        self.known.servers.answered(NAS)
        self.answered_at, self.is_open, self.misses = self.known.clock.now, False, 0

    @rule()
    def mount_begins(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.known.turn())
            except Refused:
                assert self.is_open or len(self.running) == AT_ONCE
            else:
                assert not self.is_open
                self.running.append(stack.pop_all())

    @precondition(lambda self: self.running)
    @rule()
    def mount_ends(self) -> None:
        self.running.pop().close()

    @rule(is_mounted=st.booleans())
    def volumes_are_mounted(self, is_mounted: bool) -> None:
        self.known.servers.use([NAS] if is_mounted else [])
        if not self.known.servers.report():
            assert not self.running
            assert not self.is_probed
            self.is_open, self.misses, self.answered_at = False, 0, 0.0

    @precondition(lambda self: not self.is_probed)
    @rule()
    def probe_begins(self) -> None:
        pause_s = self.known.servers.pause_s()
        if self.is_open:
            assert pause_s is not None
            assert pause_s <= 30
        self.is_probed = bool(self.known.servers.due())

    @precondition(lambda self: self.is_probed)
    @rule(is_answered=st.booleans())
    def probe_ends(self, is_answered: bool) -> None:
        if is_answered:
            self.server_answers()
        else:
            self.known.servers.missed(NAS, "it is silent", self.known.clock.now)
            self.misses += 1
            self.is_open = self.is_open or self.misses >= 2
        self.known.servers.probed(NAS)
        self.is_probed = False

    @invariant()
    def breaker_is_as_expected(self) -> None:
        assert any(health.is_open for health in self.known.servers.report()) == self.is_open
        assert len(self.running) <= AT_ONCE

    def teardown(self) -> None:
        for stack in self.running:
            stack.close()


def test_breaker() -> None:
    run_state_machine_as_test(Breaker, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))
