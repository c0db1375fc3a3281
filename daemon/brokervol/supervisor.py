"""`brokervol daemon`: the driver and the sidecar as two processes, each started again alone when it dies.

It imports next to nothing, as what runs for months beside the work should be small. It sleeps in
sigtimedwait(2): its signals stay blocked, so that none can be lost between two steps, and no handler ever runs.

A child gets a session of its own. The signals of a terminal then reach it once, through the supervisor; and what
it started can be killed with it, as one process group. It asks the kernel itself to die with the supervisor,
which it is told to do by BROKERVOL_SUPERVISED, the supervisor's pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from brokervol import premises, settings
from brokervol.logfile import SPEAKING, LogFile, Output, Relay, Shown, log_path
from brokervol.settings import EXIT_REFUSED, Settings

LEVELS = ("debug", "info", "warning", "error")

_MODULES = {"driver": "volumedriver", "sidecar": "sidecar"}

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WAITED_FOR = (*_STOPS, signal.SIGCHLD)
_PR_SET_CHILD_SUBREAPER = 36

_IN_PLUGIN = "BROKERVOL_BUILD"  # only there: it says which build that is
_REFUSED = f"exit code {EXIT_REFUSED}"

Log = Callable[..., None]


class Backoff:
    """How long to wait before the next start: nothing much at first, doubling while it keeps dying."""

    FIRST_S = 0.1
    LONGEST_S = 10.0
    HEALTHY_S = 60.0

    def __init__(self) -> None:
        self._next_s = self.FIRST_S

    def delay_s(self, lived_s: float) -> float:
        """The delay after a process that lived for `lived_s`."""
        if lived_s >= self.HEALTHY_S:
            self._next_s = self.FIRST_S
        delay_s = self._next_s
        self._next_s = min(delay_s * 2, self.LONGEST_S)
        return delay_s


class Program(NamedTuple):
    """What to keep running. Without an `output` it writes where the supervisor does."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    output: Output | None = None


class Child:
    """One program: its process while it has one, and otherwise when to start it."""

    def __init__(self, program: Program, now: float) -> None:
        self.program = program
        self.pid: int | None = None
        self.due = now
        self.starts = 0
        self._backoff = Backoff()
        self._started = now

    def start(self, now: float) -> None:
        """Raises OSError where the kernel gives no process."""
        self._started = now
        command, output = self.program.command, self.program.output
        self.pid = os.posix_spawn(
            command[0],
            command,
            self.program.environment,
            file_actions=output.actions() if output else (),
            setsid=True,
            setsigmask=(),
            setsigdef=_WAITED_FOR,
        )
        self.starts += 1

    def plan_restart(self, now: float) -> float:
        self.pid = None
        delay_s = self._backoff.delay_s(now - self._started)
        self.due = now + delay_s
        return delay_s


class Supervisor:
    """Keeps `programs` running until a signal to stop.

    Args:
        programs: in the order of their starts.
        log: called with an event and its facts.
        clock: seconds, going forward.
        wait: waits for one of the blocked signals, at most so many seconds (None: for ever); returns its number,
            or None when the time is over.
    """

    # The engine kills a plugin 10 s after it asked it to end, and no child may be left to that.
    STOP_S = 8.0

    def __init__(
        self,
        programs: Sequence[Program],
        log: Log,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float | None], int | None] | None = None,
    ) -> None:
        self._log = log
        self._clock = clock
        self._wait = wait or _wait_for_signal
        self._children = [Child(program, clock()) for program in programs]

    def run(self) -> int:
        """Returns the exit code once nothing is left running. Needs the main thread."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        _adopt_orphans()
        while True:
            self._start_due()
            received = self._wait(self._until_next_start())
            if received in _STOPS:
                return self._stop(signal.Signals(received).name)
            if self._reap():
                self._stop("settings that are not accepted")
                return EXIT_REFUSED

    def _start_due(self) -> None:
        for child in self._children:
            if child.pid is None and child.due <= self._clock():
                try:
                    child.start(self._clock())
                except OSError as error:
                    self._plan_restart(child, f"it cannot be started: {error}")
                else:
                    self._log("started", child=child.program.name, pid=child.pid)

    def _until_next_start(self) -> float | None:
        dues = [child.due for child in self._children if child.pid is None]
        return max(0.0, min(dues) - self._clock()) if dues else None

    def _reap(self) -> bool:
        """Collect every process that ended: the children, and orphans that they left.

        Returns:
            Whether a child does not accept its settings, and would not the next time either. Who accepted them
            once misses something, such as a file, that may come back; the others must not end for it.
        """
        is_refused = False
        for pid, reason in _ended_processes():
            for child in self._children:
                if child.pid == pid:
                    is_refused |= reason == _REFUSED and child.starts == 1
                    self._plan_restart(child, reason)
        return is_refused

    def _plan_restart(self, child: Child, reason: str) -> None:
        pid = child.pid
        delay_s = child.plan_restart(self._clock())
        name = child.program.name
        self._log("died", level="warning", child=name, pid=pid, reason=reason, restart_in_s=delay_s)

    def _stop(self, reason: str) -> int:
        """Ask all to end, and kill what has not ended in time, or at a second signal."""
        self._log("stopping", reason=reason)
        running = {child.pid: child.program.name for child in self._children if child.pid is not None}
        for pid in running:
            os.kill(pid, signal.SIGTERM)
        deadline = self._clock() + self.STOP_S
        while running:
            left_s = deadline - self._clock()
            if left_s <= 0 or self._wait(left_s) in _STOPS:
                self._kill(running)
                break
            for pid, _ in _ended_processes():
                running.pop(pid, None)
        self._log("stopped")
        return 0

    def _kill(self, running: Mapping[int, str]) -> None:
        for pid, name in running.items():
            self._log("killed", level="warning", child=name, pid=pid, reason="it did not end when asked to")
            _kill_group(pid)
            os.waitpid(pid, 0)


def _wait_for_signal(timeout_s: float | None) -> int | None:
    if timeout_s is None:
        return signal.sigwait(_WAITED_FOR)
    received = signal.sigtimedwait(_WAITED_FOR, timeout_s)
    return received.si_signo if received else None


def _adopt_orphans() -> None:
    """Become the parent of processes whose own parent below us dies: then it is we who reap them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _ended_processes() -> list[tuple[int, str]]:
    """Reap what has ended, each with its reason; the rest of its process group is killed first.

    The group is killed while the ended process still holds its number, so that it cannot be somebody else's.
    """
    ended: list[tuple[int, str]] = []
    with contextlib.suppress(ChildProcessError):
        while True:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None:
                break
            _kill_group(info.si_pid)
            os.waitpid(info.si_pid, 0)
            ended.append((info.si_pid, _reason(info)))
    return ended


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _reason(info: os.waitid_result) -> str:
    if info.si_code == os.CLD_EXITED:
        return f"exit code {info.si_status}"
    with contextlib.suppress(ValueError):  # real-time signals have no names
        return signal.Signals(info.si_status).name
    return f"signal {info.si_status}"


def json_log(least: str, kept: LogFile | None = None, shown: Shown | None = None) -> Log:
    """A logger of JSON lines on standard output, in the form that the two processes use, and into `kept`.

    Args:
        shown: see `Relay`.
    """
    wanted = LEVELS[LEVELS.index(least) :]

    def log(event: str, level: str = "info", **facts: Any) -> None:
        if level in wanted:
            now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
            line = {"timestamp": now, "level": level, "event": event, "process": "supervisor", **facts}
            entry = json.dumps(line).encode("ascii")
            text = shown(entry).decode() if shown else f"{entry.decode()}\n"
            with contextlib.suppress(OSError), SPEAKING:  # nobody reading the log is no reason to fall
                print(text, end="", flush=True)
            if kept is not None:
                kept.write(entry)

    return log


def programs(options: Settings, environment: Mapping[str, str], relay: Relay | None = None) -> list[Program]:
    """The two processes: the driver first, for the engine waits for it. Their environment has their settings."""
    given = {**environment, **options.environment(), "BROKERVOL_SUPERVISED": str(os.getpid())}
    # -P: a module in the working directory is none of ours.
    python = [sys.executable, "-P", "-m"]
    return [
        Program(name, [*python, module], given, relay.output(name) if relay else None)
        for name, module in _MODULES.items()
    ]


def parse(argv: Sequence[str] | None, environment: Mapping[str, str]) -> Settings:
    """The settings of both processes. What is not accepted ends this one, before they are started."""
    text = "Run the volume driver and the sidecar, and start again what dies."
    return settings.read(settings.DAEMON, text, argv, environment)


def _run(options: Settings) -> int:
    kept = LogFile(log_path(options.root))
    shown: Shown | None = None
    if options.log_format == "console":
        from brokervol import logs  # noqa: PLC0415  # with much that a daemon does not need else

        shown = logs.in_words
    relay = Relay(kept, shown)
    supervisor = Supervisor(programs(options, os.environ, relay), json_log(options.log_level, kept, shown))
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)  # before there is a second thread
    relay.start()
    try:
        return supervisor.run()
    finally:
        relay.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run both processes until a signal to stop. Returns the exit code.

    Where settings are not accepted a managed plugin waits to be ended. An engine whose plugin ends by itself while
    it is enabled starts it once more at once, and can then enable it no more before it is started anew itself
    ("id already in use": seen with Docker 20.10).
    """
    try:
        options = parse(argv, os.environ)
        premises.check(settings.DAEMON, options)
        code = _run(options)
    except SystemExit as end:
        code = int(end.code or 0)
    if code == EXIT_REFUSED and os.environ.get(_IN_PLUGIN):
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        signal.sigwait(_STOPS)
    return code
