"""`brokervol logs`: what the driver, the sidecar and their supervisor have said on this host."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from brokervol import tables
from brokervol.console import complain, visible
from brokervol.doctor import site
from brokervol.logfile import log_path
from brokervol.supervisor import LEVELS
from brokervol.tool import guarded

_EXIT_NONE = 1
_POLL_S = 0.2
_LINES = 100
_WIDTHS = (7, 20, 10)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SPAN = re.compile(r"([0-9]{1,6})([smhd])")
_CHUNK = 1 << 20
_LONGEST_LINE = 4 << 20  # the daemon keeps none of more than 1 MiB
_DEL_AND_C1, _C0 = re.compile("[\x7f-\x9f]"), re.compile("[\x00-\x1f]")
_SHOWN_ELSEWHERE = frozenset(("timestamp", "level", "process", "event", "exception"))

_EPILOG = """\
exit codes: 0 it was shown, 1 there is no log to be seen, 2 wrong usage

examples:
  sudo brokervol logs -f
  sudo brokervol logs --since 2h --level warning
  sudo brokervol logs --request 3f2a77c09d1e4b58
"""

Entry = Mapping[str, Any]


class Unseen(Exception):
    """There is no log to be seen. The message is a sentence that says what to do."""


def entries(path: str, *, follow: bool = False) -> Iterator[tuple[str, Entry]]:
    """The lines of the log, as they stand and parsed, the older file first; without those that are no entries.

    Follows what is written later, over a change of files, if `follow`: then after each look that found nothing new
    a line is "".

    Raises:
        OSError: it cannot be read.
        Unseen: it is no file.
    """
    with contextlib.suppress(FileNotFoundError), contextlib.closing(_File(f"{path}.1")) as older:
        yield from _parsed(older)
    file = _File(path)
    try:
        yield from _parsed(file)
        while follow:
            yield "", {}
            if file.is_replaced():
                yield from _parsed(file)  # what was written last
                file.close()
                file = _File(path)
            yield from _parsed(file)
    finally:
        file.close()


class _File:
    """A file of the log, and how far it has been read. Raises Unseen for what is none, such as a FIFO."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Not to wait for somebody who writes, where it is a FIFO.
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self.close()
            raise Unseen(f"{path} is no regular file: move it away, and start the driver anew")
        self._read = 0
        self._rest = b""

    def close(self) -> None:
        os.close(self._fd)

    def is_replaced(self) -> bool:
        try:
            return os.stat(self._path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def lines(self) -> Iterator[bytes]:
        """The whole lines that nobody has read yet. Of one that is too long there is but a part."""
        if os.fstat(self._fd).st_size < self._read:  # somebody has emptied it
            self._read, self._rest = 0, b""
        while chunk := os.pread(self._fd, _CHUNK, self._read):
            self._read += len(chunk)
            *whole, rest = (self._rest + chunk).split(b"\n")
            self._rest = rest[:_LONGEST_LINE]
            yield from whole


def _parsed(file: _File) -> Iterator[tuple[str, Entry]]:
    for line in file.lines():
        text = line.decode(errors="replace")
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(text)
            if isinstance(entry, dict):
                yield text, entry


def _is_wanted(entry: Entry, options: argparse.Namespace) -> bool:
    level = str(entry.get("level", "info")).lower()
    if level in LEVELS and LEVELS.index(level) < LEVELS.index(options.level):
        return False
    if options.since is not None and str(entry.get("timestamp", "")) < options.since:
        return False
    if options.volume is not None and options.volume not in (entry.get("volume"), entry.get("workspace")):
        return False
    return options.request is None or entry.get("request") == options.request


def _lines_of(entry: Entry) -> list[str]:
    """The event and its facts, `volume mounted  volume=data id=3f2a`; and below it a traceback.

    Nothing but a line feed begins a line, which `_word` spells: a name must not look like a line of its own.
    """
    facts = [f"{key}={_word(value)}" for key, value in entry.items() if key not in _SHOWN_ELSEWHERE]
    shown = "  ".join(filter(None, (_text(entry, "event"), " ".join(facts))))
    return [*shown.split("\n"), *filter(None, _text(entry, "exception").split("\n"))]


def in_words(line: bytes) -> bytes:
    """An entry as lines for a console that may be no terminal: time, level, process, event and facts."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = {"event": line.decode(errors="replace")}
    level, moment, process = _WIDTHS
    cells = (_time(entry), moment), (_text(entry, "level"), level), (_text(entry, "process"), process)
    head = "  ".join(f"{visible(cell):<{width}}" for cell, width in cells)
    shown = [f"{head}  {visible(each)}\n" for each in _lines_of(entry)]
    return "".join(shown).encode(errors="backslashreplace")


def _time(entry: Entry) -> str:
    told = _text(entry, "timestamp")
    return f"{told[:19]}Z" if len(told) > 19 else told


def _text(entry: Entry, key: str) -> str:
    value = entry.get(key, "")
    return value if isinstance(value, str) else _word(value)


def _word(value: object) -> str:
    if isinstance(value, str) and value and not re.search(r'[\s"=]', value):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:  # it takes more of the stack than to read it
        return "(nested too deeply)"


def _show(line: str, entry: Entry, *, is_json: bool) -> None:
    if is_json:
        print(_harmless(line), flush=True)
        return
    first, *more = _lines_of(entry)
    tables.show_row((_text(entry, "level"), _time(entry), _text(entry, "process"), first), _WIDTHS)
    for each in more:
        tables.show_row(("", "", "", each), _WIDTHS)


def _harmless(line: str) -> str:
    """The same object, without what talks to a terminal: DEL and C1 are in strings only, C0 only between them."""
    spelled = _DEL_AND_C1.sub(lambda match: f"\\u{ord(match.group()):04x}", line)
    return _C0.sub(" ", spelled)


def _run(options: argparse.Namespace) -> None:
    path = _path(options.root)
    most = options.lines if options.lines is not None else (None if options.since else _LINES)
    waiting: deque[tuple[str, Entry]] | None = None if most is None else deque(maxlen=most)
    for line, entry in entries(path, follow=options.follow):
        if not line:  # all that there was has been read
            _flush(waiting, is_json=options.json)
            waiting = None
            time.sleep(_POLL_S)
        elif _is_wanted(entry, options):
            if waiting is None:
                _show(line, entry, is_json=options.json)
            else:
                waiting.append((line, entry))
    _flush(waiting, is_json=options.json)


def _flush(waiting: deque[tuple[str, Entry]] | None, *, is_json: bool) -> None:
    for line, entry in waiting or ():
        _show(line, entry, is_json=is_json)


def _path(root: str | None) -> str:
    """Raises Unseen."""
    root = root or site.find_root(os.environ)
    if root is None:
        raise Unseen(site.without_root("name it by --root; without a driver there is none"))
    path = log_path(root)
    try:
        os.stat(path)
    except PermissionError:
        raise Unseen(f"{path} is closed to this user: run this as root") from None
    except OSError as error:
        raise Unseen(
            f"{path} is not to be seen ({error.strerror}): `brokervol daemon` writes it, as the plugin does; the"
            " driver or the sidecar alone has only its standard output"
        ) from error
    return path


def _since(text: str) -> str:
    """What timestamps are compared with."""
    try:
        if match := _SPAN.fullmatch(text):
            moment = datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        else:
            told = datetime.fromisoformat(text)
            moment = (told if told.tzinfo else told.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # no time, or none of the calendar
        raise argparse.ArgumentTypeError(
            f"{text!r} is not accepted: 30s, 10m, 2h, 1d, or a time as in 2026-01-02T03:04:05"
        ) from None
    return moment.replace(tzinfo=None).isoformat()


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: a number of lines")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brokervol logs",
        description="Show what the driver, the sidecar and their supervisor have said on this host.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is said later, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", metavar="N", type=_count, help=f"the last N lines ({_LINES}; with --since all)"
    )
    parser.add_argument("--since", metavar="TIME", type=_since, help="30s, 10m, 2h, 1d ago, or a time")
    parser.add_argument(
        "--level", type=str.lower, choices=LEVELS, default=LEVELS[0], help="the least level (%(default)s)"
    )
    parser.add_argument("--volume", metavar="NAME", help="only what names this volume or workspace")
    parser.add_argument("--request", metavar="ID", help="only what this request caused")
    parser.add_argument("--json", action="store_true", help="the lines as they are kept, an object each")
    parser.add_argument("--root", metavar="DIR", help="the driver's directory of state (else that of the plugin)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if there is no log to be seen, 2 for wrong usage."""
    return guarded("logs", lambda: _main(_parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> int:
    try:
        _run(options)
    except Unseen as failure:
        complain("logs", "", str(failure))
        return _EXIT_NONE
    except KeyboardInterrupt:
        if not options.follow:  # else the way to end it
            raise
    return 0
