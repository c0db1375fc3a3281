"""A real sidecar process in the self view, and the client run as a task runs it: the zipapp, as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from brokervol.bundle import write_client


@contextlib.contextmanager
def sidecar_process(directory: Path, workspaces: dict[str, Any]) -> Iterator[Path]:
    """A sidecar serving `workspaces`; yields the directory with its socket and client, as a volume has them."""
    with killable_sidecar(directory, workspaces) as (served, _):
        yield served


@contextlib.contextmanager
def killable_sidecar(directory: Path, workspaces: dict[str, Any]) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """As `sidecar_process`, with the process; once that is gone, another can be had in the same directory.

    Its log tells when it listens.
    """
    served = directory / "served"
    served.mkdir(exist_ok=True)
    write_client(str(served))
    file = directory / "workspaces.json"
    file.write_text(json.dumps(workspaces))
    command = [sys.executable, "-m", "sidecar", "--listen", str(served / "broker.sock"), "--view", "self"]
    command += ["--workspaces", str(file), "--root", str(directory / "root")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "listens" in process.stdout.readline()
            yield served, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


class Outcome(NamedTuple):
    """How a run of the client ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Client(NamedTuple):
    """The executable in a sidecar volume, run in `cwd`."""

    executable: Path
    cwd: Path

    def __call__(self, *arguments: str | bytes, **environment: str) -> Outcome:
        """Run it in a pipe, with bytes that are not UTF-8 shown as `os.fsdecode` shows them."""
        done = subprocess.run(
            [self.executable, *arguments],
            cwd=self.cwd,
            env={**clean_environment(), **environment},
            capture_output=True,
            timeout=200,  # of thousands of files, on a busy disk
            check=False,
        )
        return Outcome(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


def clean_environment() -> dict[str, str]:
    """The environment without brokervol's variables, and with warnings of the client as errors."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BROKERVOL_", "PYTHON"))}
    return {**kept, "PYTHONWARNINGS": "error"}
