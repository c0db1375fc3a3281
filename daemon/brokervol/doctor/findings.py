"""What a check has found."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Result(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """One fact, in one sentence without its full stop.

    Attributes:
        subject: which server, volume or file, where a check looks at several; else empty.
        cure: what to do, with a command to type where there is one; of what is well, and of what did not apply,
            empty. A check that was skipped and has one could not look.
    """

    result: Result
    text: str
    cure: str = ""
    subject: str = ""

    @property
    def is_blind(self) -> bool:
        """Whether something could not be looked at, so that nobody knows whether it is well."""
        return self.result is Result.SKIPPED and bool(self.cure)


AS_ROOT = "run it as root: `sudo brokervol doctor`"


def ok(text: str, subject: str = "") -> Finding:
    return Finding(Result.OK, text, "", subject)


def warning(text: str, cure: str, subject: str = "") -> Finding:
    return Finding(Result.WARNING, text, cure, subject)


def fault(text: str, cure: str, subject: str = "") -> Finding:
    return Finding(Result.FAULT, text, cure, subject)


def skipped(why: str, subject: str = "") -> Finding:
    """There is nothing to look at, or another finding tells why."""
    return Finding(Result.SKIPPED, why, "", subject)


def unseen(why: str, cure: str = AS_ROOT, subject: str = "") -> Finding:
    """There is something, and it could not be looked at."""
    return Finding(Result.SKIPPED, why, cure, subject)
