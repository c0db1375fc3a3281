"""The line at the bottom of a terminal: how much is done, how fast, and how long still. Python 3.8."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from brokervol.console import human_size

if TYPE_CHECKING:
    from collections.abc import Iterator

_EVERY_S = 0.1
_BAR_COLUMNS = 24
_SECONDS_OF_RATE = 1e-6  # the least time that a rate is told of


class Progress:
    """Drawn on standard error by a thread of its own, so that its clock goes on while one large file is copied.

    Args:
        files: how many there will be; None if that is not known.
        size: their bytes; None where bytes tell nothing, or are not known.

    Attributes:
        files_done, bytes_done: set by who does the work.
    """

    def __init__(self, files: int | None, size: int | None) -> None:
        self._files, self._size = files, size
        self.files_done = self.bytes_done = 0
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw_on, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the line away."""
        self._ended.set()
        self._thread.join()
        _write("\r\x1b[K")

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """While open there is no line, so that something else can be said."""
        with self._lock:
            _write("\r\x1b[K")
            yield

    def _draw_on(self) -> None:
        while not self._ended.wait(_EVERY_S):
            with self._lock, contextlib.suppress(OSError):
                columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # it may have been resized
                _write("\r" + self.text(time.monotonic() - self._started, columns - 1) + "\x1b[K")

    def text(self, passed_s: float, columns: int) -> str:
        """The line after so many seconds, in at most so many columns: what matters least is left out first."""
        passed_s = max(passed_s, _SECONDS_OF_RATE)
        facts = []
        if self._files is not None:
            facts.append(f"{self.files_done:,}/{self._files:,} files")
        if self._size is None:
            facts.append(f"{self.files_done / passed_s:.1f}/s")
        else:
            whole = f"/{human_size(self._size)}" if self._size else ""
            facts += [f"{human_size(self.bytes_done)}{whole}", f"{human_size(int(self.bytes_done / passed_s))}/s"]
        part = self._part()
        if part:
            facts.append(f"{_clock(passed_s * (1 - part) / part)} left")
        else:
            facts.append(f"{_clock(passed_s)} passed")
        full = int(_BAR_COLUMNS * part)
        line = f"[{'#' * full}{'-' * (_BAR_COLUMNS - full)}]  {'  '.join(facts)}"
        while len(line) > columns and facts:
            line = "  ".join(facts)
            facts.pop()
        return line[:columns]

    def _part(self) -> float:
        """How much is done of all, 0 to 1. A file costs time beside its bytes: so both count."""
        parts = [self.files_done / self._files] if self._files else []
        parts += [self.bytes_done / self._size] if self._size else []
        return min(1.0, sum(parts) / max(len(parts), 1))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
