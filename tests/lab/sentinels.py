"""Files and directories that nobody may touch, and what of them was: read, listed, changed, replaced, added, gone.

A read shows by the access time, which is set to before the modification time, so that also a file system mounted
`relatime` notes the first one. Where access times are not kept at all (`noatime`), reads cannot be seen.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_LONG_AGO_NS = 10**18  # in 2001: before any modification


class _Known(NamedTuple):
    """What is to stay as it is of one path."""

    mode: int
    owner: tuple[int, int]
    inode: tuple[int, int]
    links: int
    size: int
    mtime_ns: int
    ctime_ns: int
    content: str
    atime_ns: int


class Sentinels:
    """Watches over all that is in `places`, as it is now.

    Args:
        places: existing files and directories; for `with_reads` they belong to this process's user.
        with_reads: whether having been read counts, too.
    """

    def __init__(self, places: Sequence[Path], *, with_reads: bool = True) -> None:
        self._places = places
        self._with_reads = with_reads
        for path in self._paths():
            if with_reads and not path.is_symlink():
                os.utime(path, ns=(_LONG_AGO_NS, path.lstat().st_mtime_ns))
        self._known = self._look()

    def touched(self) -> list[str]:
        """What is not as it was, a sentence each."""
        now = self._look()
        found = [f"{path} is gone" for path in self._known.keys() - now.keys()]
        found += [f"{path} is new" for path in now.keys() - self._known.keys()]
        for path in sorted(self._known.keys() & now.keys()):
            changed = [
                f"{name} was {was!r} and is {is_now!r}"
                for name, was, is_now in zip(_Known._fields, self._known[path], now[path], strict=True)
                if was != is_now
            ]
            found += [f"{path} was touched: {', '.join(changed)}"] if changed else []
        return found

    def _look(self) -> dict[Path, _Known]:
        known = {path: _known(path) for path in self._paths()}
        if self._with_reads:
            return known
        return {path: found._replace(atime_ns=0) for path, found in known.items()}

    def _paths(self) -> list[Path]:
        below = [path for place in self._places if place.is_dir() for path in _below(place)]
        return [*self._places, *below]


def _below(directory: Path) -> Iterator[Path]:
    """Everything below, without being seen to look."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    for name in sorted(names):
        path = directory / name
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _known(path: Path) -> _Known:
    content = ""
    if stat.S_ISREG(path.lstat().st_mode):
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif path.is_symlink():
        content = os.readlink(path)
    found = path.lstat()
    atime_ns = 0 if path.is_symlink() else found.st_atime_ns
    return _Known(
        found.st_mode,
        (found.st_uid, found.st_gid),
        (found.st_dev, found.st_ino),
        found.st_nlink,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        content,
        atime_ns,
    )
