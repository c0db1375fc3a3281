"""A disk whose power can be cut: ext4 on a loop device, told to drop all that it has not written yet.

Mount it in a private mount namespace only, see lab.namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# linux/fs.h since 6.12, ext4.h before: what xfstests' "godown" does.
_SHUTDOWN = 0x8004587D
_WITHOUT_LOG_FLUSH = 2

_SIZE_BYTES = 8 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """An empty disk in a file of `directory`, mounted at `mountpoint` by `plug_in`."""

    def __init__(self, directory: Path) -> None:
        self.mountpoint = directory / "disk"
        self._image = directory / "image"
        self.mountpoint.mkdir(exist_ok=True)
        with self._image.open("wb") as image:
            image.truncate(_SIZE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self._image], check=True)

    def plug_in(self) -> None:
        subprocess.run(["mount", "-o", "loop", self._image, self.mountpoint], check=True)

    def pull_out(self) -> None:
        subprocess.run(["umount", self.mountpoint], check=True)

    def write_all(self) -> None:
        """Bring everything to the disk."""
        with self._root() as root:
            if _libc.syncfs(root) != 0:
                raise OSError(ctypes.get_errno(), "syncfs")

    def commit_names(self) -> None:
        """Have the journal written, as any other program's fsync does: names and sizes, not files' content."""
        bystander = os.open(self.mountpoint / "bystander", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.fsync(bystander)
        finally:
            os.close(bystander)

    def fail(self) -> None:
        """Lose what is not on the disk, and answer nothing but errors from now on."""
        with self._root() as root:
            fcntl.ioctl(root, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))

    def cut_power(self) -> None:
        """Lose what is not on the disk. Afterwards it is plugged in again."""
        self.fail()
        self.pull_out()
        self.plug_in()

    @contextmanager
    def _root(self) -> Iterator[int]:
        root = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield root
        finally:
            os.close(root)
