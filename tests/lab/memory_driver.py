"""The driver's logic without kernel mounts or a process: real state on disk, real directories, memory mounts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lab.memory_mounter import MemoryMounter
from storage.definitions import DefinitionStore, definitions_path
from volumedriver.driver import Driver, Parts
from volumedriver.hostpaths import HostDirectories
from volumedriver.policy import HostPathPolicy
from volumedriver.sources import Sources
from volumedriver.store import ReferenceStore


class Machine:
    """A host that a driver runs on, may crash on, and starts again on.

    `holding` are the processes that hold every volume; `asked_about` is for which they were asked.
    """

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.hostfs = directory / "hostfs"
        for path in (self.root / ".state", self.root / "volumes", self.hostfs / "srv/data"):
            path.mkdir(parents=True)
        self.mounter = MemoryMounter()
        self.holding: list[int] = []
        self.asked_about: list[tuple[str, str | None]] = []
        self.boot_id = "first boot"
        self.policy = HostPathPolicy()
        self.lock_timeout_s = 10.0
        self._closing: list[Callable[[], None]] = []
        self.start()

    def start(self) -> Driver:
        """A new driver on what the last one left."""
        self.stop()
        self.definitions = DefinitionStore(definitions_path(str(self.root)))
        self.references = ReferenceStore(str(self.root / ".state/mounts.sqlite"))
        hosts = HostDirectories(str(self.hostfs))
        self._closing = [self.definitions.close, self.references.close, hosts.close]
        self.driver = Driver(
            Parts(
                root=str(self.root),
                definitions=self.definitions,
                references=self.references,
                mounter=self.mounter,
                sources=Sources(hosts, self.policy, str(self.root)),
                holders=self._holders,
                boot_id=self.boot_id,
                lock_timeout_s=self.lock_timeout_s,
            )
        )
        return self.driver

    def _holders(self, mountpoint: str, host_path: str | None) -> list[int]:
        self.asked_about.append((mountpoint, host_path))
        return self.holding

    def stop(self) -> None:
        """Let go of the state; nothing is written, so this is a crash as well."""
        while self._closing:
            self._closing.pop()()
