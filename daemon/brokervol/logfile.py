"""What the processes of `brokervol daemon` say, passed on and kept: a file of bounded size for `brokervol logs`.

The daemon's own standard output goes wherever it was started from; of a plugin, into the engine's log, quoted. So
there is a file beside the state as well. The supervisor alone writes it, since two could not turn it over; it has
the outputs of its children through pipes. Imports little, as the supervisor does.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import select
import threading
from collections.abc import Callable
from typing import NamedTuple

MOST_BYTES = 5 << 20

Shown = Callable[[bytes], bytes]
"""A line, or lines, for an entry."""

SPEAKING = threading.Lock()
"""Held by who writes to this process's outputs: a long line takes several writes, and no other comes between."""

_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 20
_END_S = 2.0


def log_path(root: str) -> str:
    """The file below the driver's `--root`; the one before it has `.1` behind its name."""
    return os.path.join(root, ".state", "log.jsonl")


class LogFile:
    """A file of lines, and an older one of the same size. That it cannot be written, as on a full disk, is no
    error: it is tried again with the next line.
    """

    def __init__(self, path: str, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._size = 0

    def write(self, line: bytes) -> None:
        """Add a line, which is without its end."""
        with self._lock:
            try:
                fd = self._opened()
                if self._size + len(line) + 1 > self._most_bytes:
                    os.rename(self._path, f"{self._path}.1")
                    self._close()
                    fd = self._opened()
                self._size += os.write(fd, line + b"\n")
            except OSError:
                self._close()  # to be opened anew: perhaps the disk is another by then

    def close(self) -> None:
        with self._lock:
            self._close()

    def _opened(self) -> int:
        if self._fd is not None:
            return self._fd
        state = os.path.dirname(self._path)
        os.makedirs(os.path.dirname(state), 0o755, exist_ok=True)
        os.makedirs(state, 0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size
        return self._fd

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Output(NamedTuple):
    """Where a child writes: descriptors of its standard output and of its standard error.

    Attributes:
        held: the other ends, which it has to have, too: were the supervisor killed, who writes must not fail
            before it has ended as well.
    """

    out: int
    err: int
    held: tuple[int, int]

    def actions(self) -> list[tuple[int, int, int]]:
        """What posix_spawn(3) does for the child. A descriptor that becomes itself stays open."""
        pairs = [(self.out, 1), (self.err, 2), *((fd, fd) for fd in self.held)]
        return [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in pairs]


class _Stream:
    """One output of a child."""

    def __init__(self, name: str, target_fd: int) -> None:
        self.name = name
        self.target_fd = target_fd
        self.reading_fd, self.writing_fd = os.pipe2(os.O_CLOEXEC)
        self._pending = b""

    def lines(self, data: bytes) -> bytes:
        """The whole lines that there are with this; all that is left when there is no more."""
        text = self._pending + data
        is_last = not data or len(text) > _LONGEST_LINE
        end = len(text) if is_last else text.rfind(b"\n") + 1
        self._pending = text[end:]
        return text[:end]


class Relay:
    """Passes on what children write, line by line, and keeps it in `file`; in a thread of its own until closed.

    That thread must not be the one to take signals: they are to be blocked before it is started.

    Args:
        shown: what is passed on in the place of an entry of the file; None for lines as they came.
    """

    def __init__(self, file: LogFile, shown: Shown | None = None) -> None:
        self._file, self._shown = file, shown
        self._streams: list[_Stream] = []
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def output(self, name: str) -> Output:
        """Where the child of this name writes, however often it is started."""
        out, err = _Stream(name, 1), _Stream(name, 2)
        self._streams += [out, err]
        return Output(out.writing_fd, err.writing_fd, (out.reading_fd, err.reading_fd))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Pass on what is left. Who still holds an end of a pipe is waited for, but not long."""
        for stream in self._streams:
            os.close(stream.writing_fd)
        self._thread.join(_END_S)
        self._file.close()

    def _run(self) -> None:
        streams = {stream.reading_fd: stream for stream in self._streams}
        poll = select.poll()
        for fd in streams:
            poll.register(fd, select.POLLIN)
        while streams:
            for fd, _ in poll.poll():
                data = os.read(fd, _CHUNK)
                self._pass_on(streams[fd], data)
                if not data:
                    poll.unregister(fd)
                    del streams[fd]

    def _pass_on(self, stream: _Stream, data: bytes) -> None:
        lines = stream.lines(data)
        entries = [_entry(line, stream) for line in lines.splitlines() if line]
        rest = memoryview(lines if self._shown is None else b"".join(map(self._shown, entries)))
        with contextlib.suppress(OSError), SPEAKING:  # nobody reading the log is no reason to fall
            while rest:
                rest = rest[os.write(stream.target_fd, rest) :]
        for entry in entries:
            self._file.write(entry)


def _entry(line: bytes, stream: _Stream) -> bytes:
    """The line as an object of JSON that says whose it is."""
    if line.startswith(b'{"') and line.endswith(b"}"):
        return b'{"process": "%s", %s' % (stream.name.encode("ascii"), line[1:])
    now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
    level = "error" if stream.target_fd == 2 else "info"
    said = {"process": stream.name, "timestamp": now, "level": level, "event": line.decode(errors="replace")}
    return json.dumps(said).encode("ascii")
