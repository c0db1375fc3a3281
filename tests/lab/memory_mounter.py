"""A mounter without a kernel, for the driver's logic. The suite in conformance/test_mounter.py holds it honest."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from volumedriver.errors import MountFailed


class MemoryMounter:
    """Mountpoints are real directories; mounts are entries: which directory (None: a token), if read-only.

    `before_mount` is called in every mount before it takes effect: to block it, or to raise.
    """

    def __init__(self) -> None:
        self.entries: dict[str, tuple[int | None, bool]] = {}
        self.before_mount: Callable[[str], None] = lambda _: None
        self._lock = threading.Lock()

    def mount(self, source_fd: int | None, mountpoint: str, *, read_only: bool) -> None:
        made = not os.path.lexists(mountpoint)
        try:
            if made:
                os.mkdir(mountpoint, 0o700)
            if os.path.islink(mountpoint) or not os.path.isdir(mountpoint) or mountpoint in self.entries:
                raise MountFailed(f"cannot mount at {mountpoint}: it is taken")
            try:
                inode = None if source_fd is None else os.fstat(source_fd).st_ino
            except OSError as error:
                raise MountFailed(f"cannot mount at {mountpoint}: {error}") from error
            self.before_mount(mountpoint)
        except BaseException:
            if made:
                os.rmdir(mountpoint)
            raise
        with self._lock:
            self.entries[mountpoint] = (inode, read_only)

    def unmount(self, mountpoint: str) -> None:
        with self._lock:
            self.entries.pop(mountpoint, None)
        with contextlib.suppress(OSError):
            os.rmdir(mountpoint)

    def is_mounted(self, mountpoint: str) -> bool:
        return mountpoint in self.entries

    def mountpoints(self, directory: str) -> set[str]:
        with self._lock:
            return {path for path in self.entries if os.path.dirname(path) == directory}
