"""A driver in a machine with an NFS server (`lab.nas`), called as the engine does."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lab.keeper import descendants
from lab.nas import Nas
from lab.processes import Running, running, wait_until
from lab.volume_driver import Calls
from storage.definitions import mountpoint
from storage.mountinfo import Mount, read_mounts

ID = "a" * 64
TIMEOUT_S = 3
WARM = 3  # processes for NFS that may stay: the nursery and two workers
DIRECTORY = "/run/bv"


class Driver(Calls):
    """Its own root is the machine's, and its volumes are of NFS."""

    def __init__(self, process: Running, root: str) -> None:
        super().__init__(process)
        self.root = root

    def create(self, name: str, nfs_path: str | Path, mount_options: str = "", **options: str) -> None:
        """A volume, on `nas` unless another server is named."""
        place = nfs_path if isinstance(nfs_path, str) else f"nas:{exported(nfs_path)}"
        given = {"type": "nfs", "nfs_path": place, "mount_options": mount_options, **options}
        self.done("Create", Name=name, Opts=given)

    def mount(self, name: str, mount_id: str = ID) -> Path:
        return Path(self.done("Mount", Name=name, ID=mount_id).json["Mountpoint"])

    def mounted(self, nfs_path: str | Path, mount_options: str = "", **options: str) -> Path:
        """The files of a new volume."""
        name = f"v{next(_NUMBERS)}"
        self.create(name, nfs_path, mount_options, **options)
        return self.mount(name)

    def refused(self, status: int, nfs_path: str | Path, mount_options: str = "", **options: str) -> str:
        """The sentence with which a new volume is not mounted. Nothing may be left of the attempt."""
        name = f"v{next(_NUMBERS)}"
        self.create(name, nfs_path, mount_options, **options)
        sentence = self.error(status, "Mount", Name=name, ID=ID)
        assert not os.path.lexists(mountpoint(self.root, name))
        self.done("Remove", Name=name)
        return sentence

    def remove_all(self) -> None:
        for volume in self.done("List").json["Volumes"]:
            if volume["Mountpoint"]:
                self.done("Unmount", Name=volume["Name"], ID=ID)
            self.done("Remove", Name=volume["Name"])

    def mounts(self) -> list[Mount]:
        return [mount for mount in read_mounts() if mount.mountpoint.startswith(f"{self.root}/volumes/")]

    def nothing_is_left(self) -> None:
        assert self.mounts() == []
        assert os.listdir(f"{self.root}/volumes") == []
        self.wait_for_idle_workers()

    def workers(self) -> list[int]:
        """Its processes for NFS."""
        return descendants(self.process.pid)

    def descriptors(self) -> int:
        """How many files and connections it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def wait_for_idle_workers(self) -> None:
        wait_until(lambda: len(self.workers()) <= WARM, "no more than the warm workers")


_NUMBERS = itertools.count()


def exported(path: Path) -> str:
    """A path of the server as its clients name it."""
    return f"/{path.relative_to(Nas.directory)}"


@contextlib.contextmanager
def running_driver(name: str, *options: str) -> Iterator[Driver]:
    """A driver with a directory of its own. What it leaves mounted stays for the next of the name."""
    root, socket_path = f"{DIRECTORY}/{name}", f"{DIRECTORY}/{name}.sock"
    command = [sys.executable, "-m", "volumedriver", "--socket", socket_path, "--root", root]
    timeout = ["--nfs-mount-timeout-s", str(TIMEOUT_S), "--nfs-boot-s", "0"]  # the machine has just booted
    with running([*command, *timeout, *options], {}, socket_path) as process:
        yield Driver(process, root)


@contextlib.contextmanager
def leaving_nothing(driver: Driver) -> Iterator[Driver]:
    """Nothing is left of the volumes that are made in the block."""
    yield driver
    driver.remove_all()
    driver.nothing_is_left()


def assert_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), f"{pids} are gone")


def seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def mount_and_unmount(driver: Driver, name: str) -> float:
    took_s = seconds(partial(driver.mount, name))
    driver.done("Unmount", Name=name, ID=ID)
    return took_s
