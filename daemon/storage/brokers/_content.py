"""The bytes of files on a mounted volume: read from a descriptor, and written as they arrive."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from storage import journal, linux
from storage.brokers._uploads import NewFile, Uploading
from storage.brokers.broker import Content, Readable
from storage.exceptions import BackendUnavailable, FileChanged
from storage.files import FILE_MODE, check_file_path, is_gone
from storage.os_errors import os_errors, quoted

_BLOCK_BYTES = 256 * 1024

# To take the caller's identity costs as much as to write some of these.
_ARRIVING_BYTES = 1024 * 1024

_LAST_SECOND = 253_402_300_799  # of the year 9999: file systems know later ones


class FileContent(Content):
    """The content of a regular file that the caller's identity opened; its descriptor is owned from now on.

    What a descriptor shows is one version, whatever is renamed to the file's path. What is written into the very
    file meanwhile is seen.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._subject = f"read {quoted(path)}"
        found = os.fstat(fd)
        modified = min(max(found.st_mtime, 0), _LAST_SECOND)
        super().__init__(found.st_size, etag_of(found), datetime.fromtimestamp(modified, UTC))

    def read(self, start: int, length: int) -> Generator[bytes, None, None]:
        end = start + length
        while start < end:
            with os_errors(self._subject):
                block = os.pread(self._fd, min(_BLOCK_BYTES, end - start), start)
            if not block:
                raise BackendUnavailable(f"{self._subject}: the file was cut short while it was read")
            start += len(block)
            yield block

    def close(self) -> None:
        os.close(self._fd)


def etag_of(found: os.stat_result) -> str:
    """The entity tag of a file's version.

    The time of its last change is in it beside that of its modification, which anybody can set back.
    """
    return f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"


@dataclass(eq=False)
class Arrival(NewFile):
    """A file whose bytes arrive bit by bit.

    Attributes:
        etag: of the new version, once it has its name.
        is_new: whether nothing was at its path.
    """

    operation = "write"
    source: Readable
    expected: str | None
    etag: str = field(default="", init=False)
    is_new: bool = field(default=True, init=False)


class Arriving(Uploading):
    """The steps of a file that arrives.

    They are `examine`, `begin`, `receive`, `tell_size`, `finish`, `sync`, `take_place`.

    All but `receive` and `tell_size` are taken with the caller's identity.
    """

    def examine(self, arrival: Arrival) -> None:
        """Look at its place, and refuse what must not be replaced."""
        check_file_path(arrival.file.file_path)
        self.look_at(arrival)
        self._refuse_other_version(arrival)
        arrival.is_new = arrival.before is None

    def begin(self, arrival: Arrival) -> None:
        """Make the file, without its name yet."""
        self.make(arrival)
        self._group.held.append(arrival.new)

    def receive(self, arrival: Arrival) -> None:
        """Write what comes. Whoever it comes from may take their time, so nobody's identity is held for it."""
        arrival.size = 0
        while block := arrival.source.read(_ARRIVING_BYTES):
            with self._view.acting():  # for quotas, and blocks kept for root
                _write(arrival.new.fd, block)
            arrival.size += len(block)

    def tell_size(self, arrival: Arrival) -> None:
        """Write the size down that only now is known."""
        if arrival.intent:
            arrival.intent.size = arrival.size
            journal.tell_size(arrival.intent)

    def finish(self, arrival: Arrival) -> None:
        """Give the whole file its mode, and begin to bring it to the disk."""
        os.fchmod(arrival.new.fd, FILE_MODE)
        linux.start_write_back(arrival.new.fd)

    def take_place(self, arrival: Arrival) -> None:
        """Give the file its name, if what is there is still what may be replaced."""
        self._refuse_other_version(arrival)
        self.publish(arrival)
        with contextlib.suppress(OSError):  # the file is there, and that is what counts
            arrival.etag = etag_of(os.fstat(arrival.new.fd))

    def _refuse_other_version(self, arrival: Arrival) -> None:
        if arrival.expected is None:
            return
        path = arrival.file.file_path
        try:
            found = self._group.workspace.stat(path)
        except OSError as error:
            if is_gone(error):
                raise FileChanged(f"{arrival.subject}: no file is there") from error
            raise
        if not stat.S_ISREG(found.st_mode) or etag_of(found) != arrival.expected:
            raise FileChanged(f"{arrival.subject}: what is there has another entity tag")


def _write(fd: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]
