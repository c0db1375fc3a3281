"""How the verbs of a task speak: exit codes, sentences, sizes, the progress line. Python 3.8, standard library."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import time
from typing import Any

EXIT_FAILED, EXIT_USAGE, EXIT_MISSING, EXIT_DENIED, EXIT_UNAVAILABLE = 1, 2, 3, 4, 5
EXIT_INTERRUPTED = 130
EXIT_OUTPUT_CLOSED = 141

EXIT_BY_CODE = {
    "missing-file": EXIT_MISSING,
    "unknown-workspace": EXIT_MISSING,
    "permission-denied": EXIT_DENIED,
    "read-only": EXIT_DENIED,
    "backend-unavailable": EXIT_UNAVAILABLE,
    "busy": EXIT_UNAVAILABLE,
    "unreachable": EXIT_UNAVAILABLE,
}

_CODE_BY_ERRNO = {
    errno.ENOENT: "missing-file",
    errno.ENOTDIR: "missing-file",
    errno.EACCES: "permission-denied",
    errno.EPERM: "permission-denied",
    errno.EROFS: "read-only",
    errno.ENOSPC: "no-space",
}

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class UsageError(Exception):
    """The command line is wrong; the message says how."""


class OutputClosed(Exception):
    """Nobody reads standard output any more, as with `| head`."""


class Failure(Exception):
    """One file or workspace failed: `code` is one of the API's, the message a sentence about `subject`."""

    def __init__(self, subject: str, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.subject = subject
        self.code = code

    @classmethod
    def of(cls, subject: str, error: OSError) -> Failure:
        """What the local file system says about `subject`."""
        sentence = (error.strerror or str(error)).lower()
        return cls(subject, _CODE_BY_ERRNO.get(error.errno or 0, "internal-error"), sentence)


def visible(text: str) -> str:
    """`text` with its control characters spelled out, so that no name can talk to the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def human_size(size: int) -> str:
    """1023, 1.5K, 12M: as `ls -h` has it."""
    if size < 1024:
        return str(size)
    value = float(size)
    for unit in "KMGTP":
        value /= 1024
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < 1023.5:
            return f"{value:.0f}{unit}"
    return f"{value / 1024:.1f}E"


def complain(verb: str, subject: str, sentence: str) -> None:
    """One line on standard error: `brokervol: cp: products:2026/a.tif: there is no such file`."""
    line = visible(": ".join(["brokervol", *filter(None, (verb, subject)), sentence]))
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        sys.stderr.buffer.write(os.fsencode(line + "\n"))
        sys.stderr.buffer.flush()


class Console:
    """What one run of a verb prints, and the exit code that it earns."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.exit_code = 0
        self.progress: Progress | None = None

    def print(self, text: str) -> None:
        """A line of exactly these bytes: a name that is not UTF-8 comes out as it is.

        Raises:
            OutputClosed: where nobody reads it.
        """
        try:
            sys.stdout.buffer.write(os.fsencode(text) + b"\n")
        except BrokenPipeError:
            raise OutputClosed from None

    def print_json(self, item: Any) -> None:
        self.print(json.dumps(item, separators=(",", ":")))

    def flush(self) -> None:
        """Raises OutputClosed where nobody reads, OSError where what is printed cannot be kept."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise OutputClosed from None

    def name(self, path: str) -> str:
        """A file's name as it is printed: exactly, but harmless on a terminal."""
        return visible(path) if sys.stdout.isatty() else path

    def fail(self, failure: Failure) -> None:
        """Say what failed. The first failure makes the exit code."""
        if self.progress:
            self.progress.clear()
        complain(self.verb, failure.subject, str(failure))
        self.exit_code = self.exit_code or EXIT_BY_CODE.get(failure.code, EXIT_FAILED)


class Progress:
    """A line at the bottom of the terminal: how much is done, how fast, and how long still."""

    _EVERY_S = 0.1
    _BAR_COLUMNS = 24

    def __init__(self, total: int) -> None:
        self._total = total
        self._started = time.monotonic()
        self._drawn = 0.0

    def draw(self, count: int) -> None:
        now = time.monotonic()
        if now - self._drawn < self._EVERY_S and count < self._total:
            return
        self._drawn = now
        with contextlib.suppress(OSError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write("\r" + self.text(count, now - self._started)[: columns - 1] + "\x1b[K")
            sys.stderr.flush()

    def text(self, count: int, passed_s: float) -> str:
        rate = count / max(passed_s, 1e-6)
        minutes, seconds = divmod(int((self._total - count) / rate) if rate else 0, 60)
        full = self._BAR_COLUMNS * count // max(self._total, 1)
        bar = "#" * full + "-" * (self._BAR_COLUMNS - full)
        return f"[{bar}] {count}/{self._total} files  {rate:.1f}/s  {minutes}:{seconds:02d} left"

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
