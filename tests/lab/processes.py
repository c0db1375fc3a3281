"""A server process of the project, as it really runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

# None of them is what a test is about: they end one that would never end, on a machine however busy.
_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 60
_PATIENCE_S = 60
_POLL_S = 0.005


class Running:
    """A process that serves on `socket_path`. Its output, both streams, is its log."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], socket_path: str, log: IO[bytes]) -> None:
        self.socket_path = socket_path
        self._log = log
        started = time.monotonic()
        self._process = subprocess.Popen(
            argv, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        self.pid = self._process.pid
        try:
            self._wait_until_connectable(started + _START_TIMEOUT_S)
        except BaseException:
            self.kill()
            raise
        self.start_s = time.monotonic() - started

    def log(self) -> str:
        self._log.flush()
        return os.pread(self._log.fileno(), 64 << 20, 0).decode(errors="replace")

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int:
        """Wait until it has ended by itself; returns the exit code."""
        return self._process.wait(_STOP_TIMEOUT_S)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what a crash looks like from outside."""
        self._end(signal.SIGKILL)

    def wait_for_log(self, text: str) -> None:
        """Wait until the log holds `text`."""
        wait_until(lambda: text in self.log(), f"{text!r} in the log:\n{self.log()}")

    def _end(self, signal_number: int) -> int:
        if not self.has_ended():
            self._process.send_signal(signal_number)
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def _wait_until_connectable(self, deadline: float) -> None:
        while True:
            if self.has_ended():
                raise AssertionError(f"the process ended with {self._process.returncode}:\n{self.log()}")
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.socket_path)
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"nobody listens on {self.socket_path}:\n{self.log()}")
            time.sleep(_POLL_S)


@contextlib.contextmanager
def running(argv: Sequence[str], env: Mapping[str, str], socket_path: str) -> Iterator[Running]:
    """Run `argv` with `env` added, from when it accepts on `socket_path` to the end of the block."""
    with tempfile.TemporaryFile() as log:
        process = Running(argv, env, socket_path, log)
        try:
            yield process
        finally:
            process.terminate()


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = _PATIENCE_S) -> None:
    """Ask again and again until `is_so`; fail with `what` after the time-out."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(_POLL_S)


def processor_s(pid: int) -> float:
    """What a process has used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
