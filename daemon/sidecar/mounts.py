"""The mounts of processes as the kernel tells them now, parsed only where it says something new.

Each request looks: authority is what is mounted at that moment. To read the kernel's text costs tens of
microseconds, to parse it ten times that. poll(2) on it would cost less still, and is not enough: it tells of
mounts that come and go, not that a directory above a mountpoint was renamed, that a file system was remounted
read-only elsewhere, or that the process has another root or mount namespace by now.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from storage.mountinfo import Mount, parse_mounts

_BLOCK_BYTES = 64 * 1024
# How many texts are known by what they say. One that is longer is parsed each time: anybody may mount a lot.
_TABLES = 128
_LONGEST_BYTES = 32 * 1024


class MountTable:
    """Mounts, in the kernel's order. The very same object while nothing changes; it does not change itself."""

    def __init__(self, text: bytes) -> None:
        lines = text.split(b"\n")  # splitlines() would cut a name at its carriage return
        self.mounts: Sequence[Mount] = list(parse_mounts(filter(None, lines)))


def read_table(path: str, directory_fd: int | None = None) -> MountTable:
    """The table of a process, of whose mountinfo `path` is the path.

    Raises:
        OSError: the process is gone, or may not be looked at.
    """
    text = _read(path, directory_fd)
    return _known(text) if len(text) <= _LONGEST_BYTES else MountTable(text)


class OwnTable:
    """The table of this process, of any length."""

    def __init__(self) -> None:
        self._known: tuple[bytes, MountTable] | None = None

    def now(self) -> MountTable:
        """For any thread."""
        text = _read("/proc/self/mountinfo", None)
        known = self._known
        if known is None or known[0] != text:
            known = self._known = text, MountTable(text)
        return known[1]


_known = functools.lru_cache(maxsize=_TABLES)(MountTable)


def _read(path: str, directory_fd: int | None) -> bytes:
    fd = os.open(path, os.O_RDONLY, dir_fd=directory_fd)
    try:
        blocks = []
        while block := os.read(fd, _BLOCK_BYTES):
            blocks.append(block)
        return b"".join(blocks)
    finally:
        os.close(fd)
