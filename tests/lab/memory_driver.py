"""The driver's logic without kernel mounts or a process: real state on disk, real directories, memory mounts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from lab.memory_mounter import MemoryMounter
from storage.definitions import definitions_path
from volumedriver.driver import Driver, Parts
from volumedriver.engines import Engine
from volumedriver.holders import Hold, Wanted
from volumedriver.hostpaths import HostDirectories
from volumedriver.mending import keep_room, make_room, opened_definitions, opened_references
from volumedriver.mounter import Mounter
from volumedriver.policy import HostPathPolicy
from volumedriver.reconcile import Reconciler
from volumedriver.sources import Sources
from volumedriver.volume import Shown


class Containers:
    """Who holds volumes: containers by name, each with what is mounted in it. `asked` is what was asked for."""

    def __init__(self) -> None:
        self.running: dict[str, Shown] = {}
        self.holding: list[int] = []  # hold everything
        self.asked: list[Wanted] = []

    def held(self, wanted: Mapping[str, Wanted]) -> dict[str, list[Hold]]:
        self.asked += wanted.values()
        return {name: holds for name, volume in wanted.items() if (holds := self._holds(volume.shown))}

    def _holds(self, shown: Shown) -> list[Hold]:
        mounted = {container: has for container, has in self.running.items() if is_same_volume(has, shown)}
        of_all = [Hold(pid, "/of-all", 0, shown.device) for pid in self.holding]
        return of_all + [Hold(7, container, 0, has.device, has.is_removed) for container, has in mounted.items()]


def is_same_volume(shown: Shown, other: Shown) -> bool:
    """Whether both show the same volume, perhaps as it was mounted at another time."""
    if shown.is_removed or other.is_removed:
        shown, other = (each._replace(root=each.root.removesuffix("//deleted")) for each in (shown, other))
    return shown.holding == other.holding or (shown.export is not None and shown.export == other.export)


class Machine:
    """A host that a driver runs on, may crash on, and starts again on.

    Attributes:
        containers: who holds volumes.
        engine: who calls; `living_engines` are those that are not killed.
        now: the clock of the reconciler, in seconds.
    """

    def __init__(self, directory: Path, mounter: Mounter | None = None) -> None:
        self.root = directory / "root"
        self.hostfs = directory / "hostfs"
        for path in (self.root / ".state", self.root / "volumes", self.hostfs / "srv/data"):
            path.mkdir(parents=True, exist_ok=True)
        self.mounter = MemoryMounter()
        self._real_mounter = mounter
        self.containers = Containers()
        self.boot_id = "first boot"
        self.engine = Engine(1, 1)
        self.living_engines = {self.engine}
        self.now = 1000.0
        self.policy = HostPathPolicy()
        self.lock_timeout_s = 10.0
        self._closing = contextlib.ExitStack()
        self.start()

    def start(self) -> Driver:
        """A new driver on what the last one left."""
        self.stop()
        with contextlib.ExitStack() as stack:
            make_room(str(self.root / ".state"))
            self.definitions = stack.enter_context(opened_definitions(definitions_path(str(self.root))))
            self.references = opened_references(str(self.root / ".state/mounts.sqlite"))
            stack.callback(self.references.close)
            hosts = HostDirectories(str(self.hostfs))
            stack.callback(hosts.close)
            self.parts = self._parts(hosts)
            self.driver = Driver(self.parts)
            keep_room(str(self.root / ".state"))
            self.reconciler = Reconciler(self.driver, self.parts, clock=lambda: self.now)
            self._closing = stack.pop_all()
        return self.driver

    def _parts(self, hosts: HostDirectories) -> Parts:
        return Parts(
            root=str(self.root),
            definitions=self.definitions,
            references=self.references,
            mounter=self._real_mounter or self.mounter,
            sources=Sources(hosts, self.policy, str(self.root)),
            holders=self.containers,
            boot_id=self.boot_id,
            lock_timeout_s=self.lock_timeout_s,
            is_alive=lambda engine: engine in self.living_engines,
        )

    def stop(self) -> None:
        """Let go of the state; nothing is written, so this is a crash as well."""
        self._closing.close()
