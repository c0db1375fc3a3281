"""Driver and sidecar on a host of the test's own, as in the managed plugin, and tasks with volumes of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from lab.namespaces import Host
from lab.processes import Running, running
from lab.task import Identity, Task
from lab.volume_driver import DIES_WITH_THE_TESTS, VolumeDriver, driver_on
from storage.mountinfo import Mount, mount_at


class PluginHost:
    """The host; its volumes are created by `create` and mounted, as for a container, by `mount`."""

    def __init__(self, host: Host, driver: VolumeDriver, sidecar: Running) -> None:
        self.host = host
        self.driver = driver
        self.sidecar = sidecar
        self._ids = iter(range(1000))

    def create(self, name: str, **options: str) -> None:
        self.driver.done("Create", Name=name, Opts=options)

    def mount(self, name: str) -> str:
        """What `docker run` does before the container starts; returns the Mount ID."""
        mount_id = f"{next(self._ids):064}"
        self.driver.mount(name, mount_id)
        return mount_id

    def task(
        self, *volumes: tuple[str, str, str], identity: Identity | None = None, is_pivoted: bool = False
    ) -> Task:
        """A task with volumes: (name, target, "ro" or "rw")."""
        root = self.host.directory / f"task{next(self._ids)}"
        for name in ("tmp", "dev", "proc"):
            (self.files(root) / name).mkdir(parents=True)
        (self.files(root) / "tmp").chmod(0o1777)
        (self.files(root) / "tmp/in").write_text("hello")
        binds = [(Path(self.driver.mountpoint(name)), target, mode) for name, target, mode in volumes]
        return Task(root, [self.socket, *binds], identity, self.host, is_pivoted=is_pivoted)

    def files(self, root: Path) -> Path:
        """Where the test finds a task's root."""
        return self.host.files / root.name

    @property
    def socket(self) -> tuple[Path, str, str]:
        return self.host.directory / "root/sidecar", "/run/brokervol", "ro"

    def token(self, name: str) -> Mount:
        """The mount of a volume as the driver's host has it."""
        found = mount_at(self.host.mounts(), self.driver.mountpoint(name))
        assert found is not None
        return found


def sidecar_on(host: Host) -> contextlib.AbstractContextManager[Running]:
    root = f"{host.directory}/root"
    command = [*host.entering, sys.executable, "-m", "sidecar", "--root", root]
    return running(command, DIES_WITH_THE_TESTS, f"/proc/{host.pid}/root{root}/sidecar/broker.sock")


@contextlib.contextmanager
def plugin_host(directory: Path) -> Iterator[PluginHost]:
    """A host below `directory`; neither process may have failed unforeseen."""
    host = Host(directory / "host")
    try:
        with driver_on(host) as driver, sidecar_on(host) as sidecar:
            yield PluginHost(host, driver, sidecar)
            for log in (driver.process.log(), sidecar.log()):
                assert "Traceback" not in log, log
    finally:
        host.close()
