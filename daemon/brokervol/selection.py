"""What the options of `find` and `cat` mean: patterns, sizes, ages, ranges. Python 3.8, standard library."""

from __future__ import annotations

import fnmatch
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, NamedTuple

from brokervol.console import UsageError

if TYPE_CHECKING:
    import argparse

    from brokervol.client import FileDetails

_UTC = timezone.utc  # noqa: UP017  # Python 3.8
_SIZE = re.compile(r"(\d{1,18})([kKMGT]?)", re.ASCII)
_AGE = re.compile(r"(\d{1,18})([smhdw])", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:.*)?", re.ASCII)
_RANGE = re.compile(r"(\d{0,18})-(\d{0,18})", re.ASCII)
_UNIT_BYTES = {"": 1, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Selection(NamedTuple):
    """Which files `find` shows; what is None is not asked for.

    Attributes:
        name: a pattern for the last part of a path. No character is special to `*`, and names match by their case.
        path: one for the whole path in the workspace.
        larger, smaller: files of more, or of fewer, bytes.
        newer, older: files that were modified after, or before.
    """

    name: str | None = None
    path: str | None = None
    larger: int | None = None
    smaller: int | None = None
    newer: datetime | None = None
    older: datetime | None = None

    @classmethod
    def parse(cls, options: argparse.Namespace) -> Selection:
        """Raises UsageError, naming the option and what is accepted."""
        now = datetime.now(_UTC)
        return cls(
            options.name,
            options.path,
            None if options.larger is None else parse_size("--larger", options.larger),
            None if options.smaller is None else parse_size("--smaller", options.smaller),
            None if options.newer is None else parse_time("--newer", options.newer, now),
            None if options.older is None else parse_time("--older", options.older, now),
        )

    @property
    def has_times(self) -> bool:
        return self.newer is not None or self.older is not None

    def takes_listed(self, found: FileDetails) -> bool:
        """Whether a file is shown, as far as a listing tells."""
        name = found.file.rpartition("/")[2]
        return (
            (self.name is None or fnmatch.fnmatchcase(name, self.name))
            and (self.path is None or fnmatch.fnmatchcase(found.file, self.path))
            and (self.larger is None or found.size > self.larger)
            and (self.smaller is None or found.size < self.smaller)
        )

    def takes_time(self, modified: datetime | None) -> bool:
        """Whether a file of that time is shown; one whose time nobody tells is not."""
        if modified is None:
            return False
        return (self.newer is None or modified > self.newer) and (self.older is None or modified < self.older)


def parse_size(option: str, text: str) -> int:
    """`100`, `64k`, `1G`: in bytes. Raises UsageError."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(
            f"{option} {text}: write a number of bytes, perhaps with k, M, G or T (of 1024), such as 64M"
        )
    return int(match.group(1)) * _UNIT_BYTES[match.group(2)]


def parse_time(option: str, text: str, now: datetime) -> datetime:
    """`90m`: so long before now; `2026-07-01`, `2026-07-01T12:00:00+02:00`: then, in UTC unless it says its zone.

    Raises UsageError.
    """
    match = _AGE.fullmatch(text)
    try:
        if match:
            return now - timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})
        if not _DATE.fullmatch(text):
            raise ValueError  # Python would take the zone of a date for its time
        then = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text}: write an age such as 30s, 90m, 12h, 7d or 2w, or a date such as 2026-07-01"
        ) from None
    return then if then.tzinfo else then.replace(tzinfo=_UTC)


def parse_range(text: str | None) -> tuple[int, int | None]:
    """`0-99`, `100-`, `-100` (the last ones), as curl's -r: the start, below 0 from the end, and the length.

    Raises UsageError.
    """
    if text is None:
        return 0, None
    match = _RANGE.fullmatch(text)
    first, last = match.groups() if match else ("", "")
    if first and last and int(first) <= int(last):
        return int(first), int(last) - int(first) + 1
    if first and not last:
        return int(first), None
    if last and not first and int(last):
        return -int(last), None
    raise UsageError(f"--range {text}: write FIRST-LAST, FIRST- or, for the last bytes, -COUNT, such as 0-1023")
