"""A person's terminal: what a command shows there; and a shell, at which blocks of commands are typed in turn."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

_COMMAND_S = 60
_BLOCK_S = 240
# What each shell is told first, also one that was started by a command, in a container. A command that fails is
# remembered, and the next ones go on, as at a terminal; those in `if`, `||` and the like are none.
_SETUP = """\
stty -echo; PS1= PS2= PROMPT_COMMAND=; set +o emacs
set -E -o pipefail; trap 'failed+="$? from $BASH_COMMAND; "' ERR
ready=yes
"""
_MARK = re.compile(r"typed-(\d+):(\w*):(.*):end\n")


def sent_by(
    command: Sequence[str], columns: int, environment: Mapping[str, str], cwd: Path | None = None
) -> tuple[str, int]:
    """What a command sends a terminal of so many columns, and how it ends.

    It has the tests' environment and the given one, and may use colours unless that says otherwise.
    """
    given = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
    given |= {"COLUMNS": str(columns), "TERM": "xterm", **environment}
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    text = b""
    with (
        open(controller, "rb", buffering=0) as output,
        subprocess.Popen(command, cwd=cwd, env=given, stdout=terminal, stderr=terminal) as process,
    ):
        os.close(terminal)
        with contextlib.suppress(OSError):  # the terminal's other side is closed
            while part := output.read(65536):
                text += part
        return text.decode(), process.wait(_COMMAND_S)


class CommandFailed(AssertionError):
    """A command at the terminal failed, or did not end."""


class Terminal:
    """Type `blocks` in a bash of one's own; a context manager.

    Args:
        prefix: a command that the shell is started by, such as nsenter with its options.
        environment: of the shell.
    """

    def __init__(self, prefix: Sequence[str], environment: Mapping[str, str]) -> None:
        self._master, slave = os.openpty()
        command = ["setsid", "--ctty", "--wait", *prefix, "bash", "--noprofile", "--norc", "--noediting", "-i"]
        self._shell = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=dict(environment))
        os.close(slave)
        self._typed = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.transcript = ""
        try:
            self._mark(time.monotonic() + _BLOCK_S)
        except CommandFailed:
            self._close()
            raise
        self._own_group = os.tcgetpgrp(self._master)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        os.close(self._master)  # hangs up: the shell and what it runs are told so by SIGHUP
        try:
            self._shell.wait(10)
        except subprocess.TimeoutExpired:
            self._shell.kill()
            self._shell.wait()

    def type(self, block: str, timeout_s: float = _BLOCK_S) -> str:
        """Run commands, to the end of the last one; what was printed meanwhile.

        A block may end in a command that starts a shell in a container (`-it`); what is typed then goes there,
        until a block ends with `exit`.

        Raises:
            CommandFailed: one of them failed, or they did not end in time.
        """
        deadline = time.monotonic() + timeout_s
        before = len(self.transcript)
        self._send(block.rstrip("\n") + "\n")
        last = block.rstrip().replace("\\\n", "").rpartition("\n")[2]
        if re.match(r"docker (run|exec) .*-it ", last):
            self._wait_for(self._is_taken, deadline)
        elif last.split()[:1] == ["exit"]:
            self._wait_for(self._is_back, deadline)
        failed = self._mark(deadline)
        told = self.transcript[before:]
        if failed:
            raise CommandFailed(f"exit code {failed}\n{told}")
        return told

    def _mark(self, deadline: float) -> str:
        """Wait until all that was typed has been done; which commands failed."""
        while True:
            self._typed += 1
            self._send(f'echo "typed-$(({self._typed}+0)):${{ready-no}}:${{failed-}}:end"; failed=\n')
            ready, failed = self._read_mark(deadline)
            if ready == "yes":
                return failed
            self._send(_SETUP)

    def _read_mark(self, deadline: float) -> tuple[str, str]:
        while True:
            for mark in _MARK.finditer(self.transcript):
                if mark[1] == str(self._typed):
                    self.transcript = self.transcript[: mark.start()] + self.transcript[mark.end() :].lstrip(
                        "\r\n"
                    )
                    return mark[2], mark[3]
            self._read(deadline)

    def _read(self, deadline: float) -> None:
        if not select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0]:
            raise CommandFailed(f"it did not end in time:\n{self.transcript[-3000:]}")
        try:
            part = self._decoder.decode(os.read(self._master, 65536))
        except OSError as error:  # EIO: nobody has the other end any more
            raise CommandFailed(f"the shell ended:\n{self.transcript[-3000:]}") from error
        self.transcript = (self.transcript + part).replace("\r\n", "\n")  # one of them may have come before

    def _wait_for(self, has_changed_hands: Callable[[], bool], deadline: float) -> None:
        """Wait before more is typed, which neither shell might read."""
        while not has_changed_hands():
            with contextlib.suppress(CommandFailed):
                self._read(time.monotonic() + 0.02)
            if time.monotonic() > deadline or self._shell.poll() is not None:
                raise CommandFailed(f"the terminal did not change hands:\n{self.transcript[-3000:]}")

    def _is_taken(self) -> bool:
        """Whether the docker client has taken the terminal for a container's, and passes every key on."""
        return not termios.tcgetattr(self._master)[3] & termios.ICANON

    def _is_back(self) -> bool:
        return os.tcgetpgrp(self._master) == self._own_group

    def _send(self, text: str) -> None:
        os.write(self._master, text.encode())
