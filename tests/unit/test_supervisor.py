"""The supervisor as a process, with small programs in the place of the driver and the sidecar."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brokervol.client import Client
from brokervol.settings import EXIT_REFUSED
from brokervol.supervisor import Backoff, parse, programs
from unit.sidecar_process import clean_environment

SUPERVISE = """
import json, sys
from brokervol.supervisor import Program, Supervisor, json_log
programs = [Program(name, command, {"PATH": "/usr/bin:/bin"}) for name, command in json.loads(sys.argv[1])]
Supervisor.STOP_S = float(sys.argv[2])
sys.exit(Supervisor(programs, json_log("info")).run())
"""

# A well-behaved child: dies with the supervisor, tells on standard output what reaches it.
CHILD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
print("up", flush=True)
received = signal.sigwait([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
more = signal.sigpending()
print("received", received.name, len(more), flush=True)
"""

STUBBORN = """
import signal
signal.alarm(60)  # whatever happens to the test
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", program, *arguments]


class Supervised:
    """A running supervisor and what it and its children said so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process  # without a buffer: what that held, communicate() would not see
        self.said: list[str] = []

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().rstrip("\n")
        assert line, f"the supervisor ended; it said {self.said}"
        self.said.append(line)
        return line

    def event(self, name: str, **facts: object) -> dict[str, Any]:
        """The next event of this name with these facts."""
        while True:
            line = self._line()
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                if found["event"] == name and facts.items() <= found.items():
                    return found

    def heard(self, pattern: str, times: int = 1) -> None:
        """Wait until so many lines in all have been like this: a child may speak before its start is told."""
        while sum(re.search(pattern, line) is not None for line in self.said) < times:
            self._line()

    def stop(self) -> list[str]:
        """Ask it to end; what was said since."""
        self.process.send_signal(signal.SIGTERM)
        said = self.rest()
        assert self.process.returncode == 0
        return said

    def rest(self) -> list[str]:
        """What is said until it ends."""
        out, _ = self.process.communicate(timeout=20)
        return out.decode().splitlines()


@contextlib.contextmanager
def supervise(*children: list[str], stop_s: float = 20, **options: Any) -> Iterator[Supervised]:
    named = [(f"child{number}", command) for number, command in enumerate(children)]
    command = [sys.executable, "-c", SUPERVISE, json.dumps(named), str(stop_s)]
    with subprocess.Popen(
        command, bufsize=0, stdout=subprocess.PIPE, env=clean_environment(), **options
    ) as process:
        try:
            yield Supervised(process)
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_end(pidfd: int) -> None:
    """Until the process ends; it need not be our child."""
    ready, _, _ = select.select([pidfd], [], [], 20)
    assert ready


@contextlib.contextmanager
def watching(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


# --- restarting ------------------------------------------------------------------------------------------


def test_children_start_in_order_each_in_a_session_of_its_own() -> None:
    with supervise(python(CHILD), python(CHILD)) as supervised:
        started = [supervised.event("started") for _ in range(2)]
        assert [event["child"] for event in started] == ["child0", "child1"]
        for event in started:
            assert os.getsid(event["pid"]) == os.getpgid(event["pid"]) == event["pid"]
            assert {"timestamp", "level", "process"} <= event.keys()
        supervised.stop()


def test_a_killed_child_is_started_again_alone_and_nearly_at_once() -> None:
    with supervise(python(CHILD), python(CHILD)) as supervised:
        first, second = (supervised.event("started")["pid"] for _ in range(2))
        os.kill(second, signal.SIGKILL)
        died = supervised.event("died", child="child1")
        assert (died["pid"], died["reason"], died["restart_in_s"]) == (second, "SIGKILL", 0.1)
        again = supervised.event("started")
        assert again["child"] == "child1"
        assert again["pid"] != second
        os.kill(first, 0)
        assert not any("child0" in line and "died" in line for line in [*supervised.said, *supervised.stop()])


def test_both_killed_at_once_are_both_started_again() -> None:
    with supervise(python(CHILD), python(CHILD)) as supervised:
        for pid in [supervised.event("started")["pid"] for _ in range(2)]:
            os.kill(pid, signal.SIGKILL)
        assert {supervised.event("started")["child"] for _ in range(2)} == {"child0", "child1"}
        supervised.stop()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("pass", "exit code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 3)", "signal 37"),
    ],
)
def test_the_reason_of_a_death_is_told(program: str, reason: str) -> None:
    with supervise(python(program)) as supervised:
        died = supervised.event("died")
        assert (died["reason"], died["level"]) == (reason, "warning")
        supervised.stop()


def test_a_program_that_cannot_start_is_told_and_the_other_runs() -> None:
    with supervise(["/nonexistent"], python(CHILD)) as supervised:
        died = supervised.event("died", child="child0")
        assert "No such file or directory" in died["reason"]
        supervised.event("started", child="child1")
        supervised.event("died", child="child0", restart_in_s=0.2)
        supervised.stop()


# A clock that only moves when the supervisor would sleep until the next start.
CRASH_LOOP = """
import json, signal, sys
from brokervol.supervisor import Program, Supervisor
slept, now = [], [0.0]

def wait(timeout_s):
    if timeout_s is None:
        return signal.sigwait([signal.SIGCHLD])
    slept.append(timeout_s)
    now[0] += timeout_s
    return signal.SIGTERM if len(slept) == 10 else None

program = Program("crashing", ["/bin/false"], {})
Supervisor([program], lambda *_, **__: None, lambda: now[0], wait).run()
print(json.dumps(slept))
"""


def test_a_crash_loop_is_slowed_down() -> None:
    done = subprocess.run([sys.executable, "-c", CRASH_LOOP], capture_output=True, text=True, check=True)
    slept = json.loads(done.stdout)
    assert slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])


def test_a_minute_of_health_makes_the_delay_short_again() -> None:
    backoff = Backoff()
    assert [backoff.delay_s(lived_s) for lived_s in (0, 1, 59.9, 60, 0)] == [0.1, 0.2, 0.4, 0.1, 0.2]


# --- ending ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_both_children_and_then_the_supervisor(number: signal.Signals) -> None:
    with supervise(python(CHILD), python(CHILD)) as supervised:
        supervised.heard('"started"', 2)
        supervised.heard("^up$", 2)
        supervised.process.send_signal(number)
        said = supervised.rest()
    assert supervised.process.returncode == 0
    assert said.count("received SIGTERM 0") == 2
    assert [json.loads(line)["event"] for line in said if line[0] == "{"] == ["stopping", "stopped"]


def test_a_terminals_interrupt_reaches_a_child_once() -> None:
    controller, terminal = pty.openpty()
    try:
        take_terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        command = [sys.executable, "-c", take_terminal + SUPERVISE, json.dumps([("child", python(CHILD))]), "20"]
        with subprocess.Popen(
            command, bufsize=0, stdin=terminal, stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            supervised = Supervised(process)
            supervised.heard("^up$")
            os.write(controller, b"\x03")
            said = supervised.rest()
        assert process.returncode == 0
        assert "received SIGTERM 0" in said
    finally:
        os.close(controller)
        os.close(terminal)


def test_a_child_that_does_not_end_is_killed_in_the_end() -> None:
    with supervise(python(STUBBORN), python(CHILD), stop_s=0.05) as supervised:
        pid = supervised.event("started", child="child0")["pid"]
        supervised.heard("^up$", 2)
        with watching(pid) as pidfd:
            said = supervised.stop()
            wait_for_end(pidfd)
    assert any('"killed"' in line and str(pid) in line for line in said)


def test_a_second_signal_kills_at_once() -> None:
    with supervise(python(STUBBORN), stop_s=600) as supervised:
        supervised.heard("^up$")
        supervised.process.send_signal(signal.SIGTERM)
        supervised.event("stopping")
        assert any('"killed"' in line for line in supervised.stop())


def test_a_signal_while_a_child_waits_for_its_restart_ends_it_all() -> None:
    with supervise(["/bin/false"]) as supervised:
        supervised.event("died")
        supervised.stop()


def test_children_die_with_a_killed_supervisor() -> None:
    with supervise(python(CHILD), python(CHILD)) as supervised:
        pids = [supervised.event("started")["pid"] for _ in range(2)]
        supervised.heard("^up$", 2)
        with watching(pids[0]) as first, watching(pids[1]) as second:
            supervised.process.kill()
            wait_for_end(first)
            wait_for_end(second)


# --- what children leave ---------------------------------------------------------------------------------

# A child that starts another process, tells its number, and waits.
PARENT = """
import os, signal, sys
pid = os.fork()
if pid == 0:
    if sys.argv[1:]:
        os.setsid()
    print("helper", os.getpid(), flush=True)
signal.alarm(60)  # whatever happens to the test
signal.pause()
"""


def start_with_helper(supervised: Supervised) -> tuple[int, int]:
    """The child that is started next, and its helper: either may be told first."""
    child = helper = 0
    while not (child and helper):
        line = supervised._line()
        if line.startswith("helper"):
            helper = int(line.split()[1])
        elif json.loads(line)["event"] == "started":
            child = json.loads(line)["pid"]
    return child, helper


def test_what_a_dead_child_started_is_killed_with_it() -> None:
    with supervise(python(PARENT)) as supervised:
        child, helper = start_with_helper(supervised)
        with watching(helper) as pidfd:
            os.kill(child, signal.SIGKILL)
            wait_for_end(pidfd)
        # The second one, so that none is left when the supervisor has stopped.
        _, second = start_with_helper(supervised)
        with watching(second) as pidfd:
            supervised.stop()
            wait_for_end(pidfd)


def test_an_orphan_is_adopted_and_reaped() -> None:
    with supervise(python(PARENT, "own-session")) as supervised:
        child, helper = start_with_helper(supervised)
        os.kill(child, signal.SIGKILL)
        supervised.event("died")
        _, second = start_with_helper(supervised)
        status = Path(f"/proc/{helper}/status").read_text()
        assert f"PPid:\t{supervised.process.pid}\n" in status
        with watching(helper) as ended, watching(second) as also_ended:
            os.kill(helper, signal.SIGTERM)
            os.kill(second, signal.SIGTERM)
            wait_for_end(ended)
            wait_for_end(also_ended)
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{helper}"):  # a process that ended has a directory until it is reaped
            assert time.monotonic() < deadline
            time.sleep(0.005)
        supervised.stop()


# What gives a service a mount namespace of its own, by systemd.exec(5).
OF_A_NAMESPACE = re.compile(
    r"(Private(Tmp|Devices|Mounts|IPC|Users)|Protect\w+|ProcSubset|MountFlags|MountAPIVFS|Root\w+|Bind\w*Paths"
    r"|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths|TemporaryFileSystem|MountImages|Extension\w+"
    r"|DynamicUser|LogNamespace|NetworkNamespacePath|PrivateNetwork|RestrictNamespaces|SystemCallFilter)="
)


def test_the_service_mounts_where_the_engine_sees_it_and_its_processes_end_one_by_one() -> None:
    """Namespaces, and calls it could not make; systemd would end all for one that the kernel killed."""
    lines = (Path(__file__).parents[2] / "plugin/brokervol.service").read_text().splitlines()
    assert [line for line in lines if OF_A_NAMESPACE.match(line)] == []
    assert {"OOMPolicy=continue", "KillMode=mixed", f"RestartPreventExitStatus={EXIT_REFUSED}"} <= {*lines}


# --- `brokervol daemon` ----------------------------------------------------------------------------------


def test_what_the_daemon_is_given_reaches_both_processes() -> None:
    environment = {"BROKERVOL_ROOT": "/r", "BROKERVOL_MAX_WAITING": "9", "LOG_LEVEL": "WARNING", "OTHER": "x"}
    options = parse(["--root", "/other", "--nfs-probe-s", "7", "--database-url", "sqlite:///y"], environment)
    driver, sidecar = programs(options, environment)
    assert (driver.command[3:], sidecar.command[3:]) == (["volumedriver"], ["sidecar"])
    for program in (driver, sidecar):
        assert program.environment == {
            "BROKERVOL_ROOT": "/other",
            "BROKERVOL_MAX_WAITING": "9",
            "LOG_LEVEL": "WARNING",
            "NFS_PROBE_S": "7",
            "DATABASE_URL": "sqlite:///y",
            "OTHER": "x",
            "BROKERVOL_SUPERVISED": str(os.getpid()),
        }


def test_a_child_that_does_not_accept_its_settings_ends_it_all() -> None:
    """Another start would not help, and an engine should not wait for one."""
    with supervise(python("raise SystemExit(2)"), python(CHILD)) as supervised:
        stopping = supervised.event("stopping")
        said = supervised.rest()
    assert stopping["reason"] == "settings that are not accepted"
    assert supervised.process.returncode == 2
    assert "received SIGTERM 0" in said or "up" not in supervised.said


def test_a_child_that_had_accepted_its_settings_does_not_end_the_other(tmp_path: Path) -> None:
    """They are the same: it misses a file, say, that may come back."""
    again = 'mkdir "$0" 2>/dev/null && exit 1; mkdir "$0/x" 2>/dev/null && exit 2; exec sleep 60'
    with supervise(["/bin/sh", "-c", again, str(tmp_path / "x")], python(CHILD)) as supervised:
        supervised.event("died", child="child0", reason="exit code 1")
        supervised.event("died", child="child0", reason="exit code 2")
        supervised.event("started", child="child0")
        supervised.stop()


@pytest.mark.root
def test_the_daemon_runs_driver_and_sidecar_and_heals(tmp_path: Path) -> None:
    workspaces = {"data": {"version": "1.0", "broker": {"type": "host", "host_path": str(tmp_path)}}}
    (tmp_path / "w.json").write_text(json.dumps(workspaces))
    command = [sys.executable, "-m", "brokervol", "daemon", "--socket", str(tmp_path / "driver.sock")]
    command += ["--root", str(tmp_path / "root"), "--view", "self", "--workspaces", str(tmp_path / "w.json")]
    with subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, env=clean_environment()) as process:
        try:
            supervised = Supervised(process)
            driver = supervised.event("started", child="driver")["pid"]
            sidecar = supervised.event("started", child="sidecar")["pid"]
            supervised.heard("listen", 2)
            os.kill(sidecar, signal.SIGKILL)
            supervised.event("died", child="sidecar", reason="SIGKILL")
            client = Client(str(tmp_path / "root/sidecar/broker.sock"))
            assert [found["name"] for found in client.workspaces()] == ["data"]  # waits for the restart itself
            os.kill(driver, 0)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(tmp_path / "driver.sock"))
            supervised.stop()
        finally:
            if process.poll() is None:
                process.kill()
