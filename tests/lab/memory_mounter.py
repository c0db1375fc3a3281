"""A mounter without a kernel, for the driver's logic. The suite in conformance/test_mounter.py holds it honest."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Sequence

from volumedriver.errors import MountFailed, NfsUnavailable
from volumedriver.holders import Hold
from volumedriver.mounter import Source
from volumedriver.nfs import NfsSource
from volumedriver.volume import SOURCE_OF_TOKENS, Shown


class MemoryMounter:
    """Mountpoints are real directories; mounts are entries: which directory (None: token, export), if read-only.

    `before_mount` is called in every mount before it takes effect: to block it, or to raise. `foreign` is what
    somebody else has mounted at a mountpoint, on top of ours if there is one. Of NFS servers those named
    in `silent` do not answer.
    """

    def __init__(self) -> None:
        self.entries: dict[str, tuple[int | None, bool]] = {}
        self.foreign: dict[str, Shown] = {}
        self.before_mount: Callable[[str], None] = lambda _: None
        self.silent: set[str] = set()
        self._shown: dict[str, Shown] = {}
        self._devices = itertools.count(100)
        self._exports = "0:50"
        self._stale: set[str] = set()
        self._lock = threading.Lock()

    def mount(self, source: Source, mountpoint: str, *, read_only: bool) -> None:
        made = not os.path.lexists(mountpoint)
        try:
            if made:
                os.mkdir(mountpoint, 0o700)
            if os.path.islink(mountpoint) or not os.path.isdir(mountpoint) or self.is_mounted(mountpoint):
                raise MountFailed(f"cannot mount at {mountpoint}: it is taken")
            try:
                inode = os.fstat(source).st_ino if type(source) is int else None
            except OSError as error:
                raise MountFailed(f"cannot mount at {mountpoint}: {error}") from error
            if isinstance(source, NfsSource) and source.options.place.server in self.silent:
                raise NfsUnavailable(f"{source.options.place.server} does not answer")
            self.before_mount(mountpoint)
        except BaseException:
            if made:
                os.rmdir(mountpoint)
            raise
        with self._lock:
            self.entries[mountpoint] = (inode, read_only)
            self._shown[mountpoint] = self._shown_of(source, inode, mountpoint)

    def _shown_of(self, source: Source, inode: int | None, mountpoint: str) -> Shown:
        if isinstance(source, NfsSource):
            place = source.options.place
            return Shown(self._exports, place.path, place.text)
        if inode is not None:
            return Shown("8:1", f"/{inode}", "disk")
        device = source.device if isinstance(source, Hold) else f"0:{next(self._devices)}"
        return Shown(device, "/", SOURCE_OF_TOKENS + os.path.basename(mountpoint))

    def forget_exports(self) -> None:
        """What a server does that comes back with other file systems: what was mounted before is stale."""
        self._stale.add(self._exports)
        self._exports = f"0:{next(self._devices)}"

    def remove_directory(self, mountpoint: str) -> Shown:
        """What the kernel tells of all its mounts once the directory that is mounted there has been removed."""
        shown = self._shown[mountpoint]
        self._shown[mountpoint] = shown._replace(root=f"{shown.root}//deleted")
        return self._shown[mountpoint]

    def stale(self, holds: Sequence[Hold]) -> list[Hold] | None:
        return None if self.silent else [hold for hold in holds if hold.device in self._stale]

    def unmount(self, mountpoint: str) -> None:
        with self._lock:
            self.entries.pop(mountpoint, None)
            self.foreign.pop(mountpoint, None)
        with contextlib.suppress(OSError):
            os.rmdir(mountpoint)

    def is_mounted(self, mountpoint: str) -> bool:
        return bool(self.shown(mountpoint))

    def shown(self, mountpoint: str) -> list[Shown]:
        ours = [self._shown[mountpoint]] if mountpoint in self.entries else []
        return [*ours, self.foreign[mountpoint]] if mountpoint in self.foreign else ours

    def mountpoints(self, directory: str) -> dict[str, list[Shown]]:
        with self._lock:
            paths = [*self.entries, *(path for path in self.foreign if path not in self.entries)]
        return {path: self.shown(path) for path in paths if os.path.dirname(path) == directory}

    def detach_all(self) -> None:
        """What `docker plugin disable -f`, and the end of the machine, does."""
        self.entries.clear()
        self.foreign.clear()
