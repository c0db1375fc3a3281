"""How the tools on the host end: no user sees a traceback, whatever becomes of what they print."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brokervol import __main__ as command
from brokervol.logfile import log_path
from lab.directories import temporary_directory
from unit.scripted_sidecar import Request, answer, scripted_sidecar
from unit.test_status_command import told

TOOLS = ("doctor", "logs", "status")


@pytest.fixture(scope="module")
def lines() -> Iterator[dict[str, str]]:
    """What to type for each tool, on a host where all of them have something to print."""

    def script(_: Request, write: Callable[[bytes], object]) -> None:
        write(answer(told()))

    with temporary_directory() as directory:
        socket, log = str(directory / "brokervol.sock"), Path(log_path(str(directory)))
        log.parent.mkdir()
        log.write_text('{"event": "said"}\n' * 1000)
        tool = f"{shlex.quote(sys.executable)} -m brokervol"
        with scripted_sidecar(socket, script):
            yield {
                "doctor": f"{tool} doctor --only kernel",
                "logs": f"{tool} logs -n 1000 --root {directory}",
                "status": f"{tool} status --socket {socket}",
            }


def typed(line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere"}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=50, env=environment
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_without_an_output_it_works(lines: dict[str, str], tool: str) -> None:
    done = typed(f"{lines[tool]} >&- && {lines[tool]} >&- 2>&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("tool", TOOLS)
def test_where_the_output_cannot_be_written_it_says_so(lines: dict[str, str], tool: str) -> None:
    done = typed(f"{lines[tool]} > /dev/full")
    assert (done.returncode, done.stderr) == (1, f"brokervol: {tool}: no space left on device\n")


@pytest.mark.parametrize("tool", TOOLS)
def test_where_nobody_reads_any_more_it_ends_silently(lines: dict[str, str], tool: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere"}
    with open(writing, "wb") as nobody:
        process = subprocess.Popen(
            shlex.split(lines[tool]), stdout=nobody, stderr=subprocess.PIPE, env=environment
        )
        _, said = process.communicate(timeout=50)
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize("tool", TOOLS)
def test_ctrl_c_while_it_is_loaded_ends_it_silently(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tool: str
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert command.main([tool]) == 130
    assert capfd.readouterr() == ("", "")
