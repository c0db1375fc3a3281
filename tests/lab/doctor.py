"""`brokervol doctor`, run as a user runs it; what it found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lab.terminal import sent_by

_TIMEOUT_S = 60


def on_terminal(columns: int, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> str:
    """What a terminal of so many columns is sent, where no engine runs and a fault is found."""
    return _sent(columns, [*prefix, *command(*arguments)], 3, **environment)


def at_terminal(columns: int, line: Sequence[str], exit_code: int) -> str:
    """The text that any command shows at a terminal of so many columns, where no engine runs."""
    return re.sub(r"\x1b\[[0-9;]*m", "", _sent(columns, line, exit_code))


def _sent(columns: int, line: Sequence[str], exit_code: int, **environment: str) -> str:
    text, ended = sent_by(line, columns, {"DOCKER_HOST": "unix:///nowhere", **environment})
    assert ended == exit_code
    return text


class Told(NamedTuple):
    """A finding, as `--json` has it."""

    check: str
    subject: str
    result: str
    finding: str
    cure: str


class Diagnosis(NamedTuple):
    exit_code: int
    findings: list[Told]

    def bad(self) -> list[str]:
        """The checks with faults and warnings."""
        return [told.check for told in self.findings if told.result in ("fault", "warning")]

    def of(self, check: str) -> Told:
        """What this check found, which must be one thing."""
        (told,) = (told for told in self.findings if told.check == check)
        return told

    def fault(self, check: str) -> Told:
        """The fault that this check found, which must be one."""
        (told,) = (told for told in self.findings if told.check == check and told.result == "fault")
        assert self.exit_code == 3
        assert told.cure
        return told


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "brokervol", "doctor", *arguments]


def run(
    *arguments: str, prefix: Sequence[str] = (), docker_host: str = "unix:///nowhere", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Have it print what it prints; no engine is asked unless one is named."""
    given: Mapping[str, str] = {**os.environ, "DOCKER_HOST": docker_host, **environment}
    line = [*prefix, *command(*arguments)]
    return subprocess.run(line, env=given, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)


def diagnose(
    *arguments: str, prefix: Sequence[str] = (), docker_host: str = "unix:///nowhere", **environment: str
) -> Diagnosis:
    """The same by `--json`."""
    done = run("--json", *arguments, prefix=prefix, docker_host=docker_host, **environment)
    assert done.stderr == "", done.stderr
    document = json.loads(done.stdout)
    return Diagnosis(done.returncode, [Told(**finding) for finding in document["findings"]])
