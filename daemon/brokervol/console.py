"""How the verbs of a task speak: exit codes, sentences, lines. Python 3.8, standard library."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brokervol.progress import Progress

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

# Those of a terminal, of lines, and of the direction of writing: a name must not be shown as another.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


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
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


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

    def print(self, text: str, end: bytes = b"\n") -> None:
        """A line of exactly these bytes: a name that is not UTF-8 comes out as it is.

        Raises:
            OutputClosed: where nobody reads it.
        """
        try:
            sys.stdout.buffer.write(os.fsencode(text) + end)
        except BrokenPipeError:
            raise OutputClosed from None

    def print_bytes(self, blocks: Iterator[bytes]) -> None:
        """These bytes, at once. Raises as `print`."""
        try:
            for block in blocks:
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
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
        with self.progress.hidden() if self.progress else contextlib.nullcontext():
            complain(self.verb, failure.subject, str(failure))
        self.exit_code = self.exit_code or EXIT_BY_CODE.get(failure.code, EXIT_FAILED)
