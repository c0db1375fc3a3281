"""The volume driver as a process on a host of the test's own, called as the Docker engine calls it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lab.namespaces import Host
from lab.processes import Running, running
from lab.unix_http import Answer, request
from storage.definitions import mountpoint
from storage.mountinfo import Mount, mount_at, read_mounts

DIES_WITH_THE_TESTS = {"BROKERVOL_SUPERVISED": str(os.getpid())}


class Calls:
    """A running driver, called as the engine does."""

    def __init__(self, process: Running) -> None:
        self.process = process

    def call(self, verb: str, **fields: object) -> Answer:
        body = json.dumps(fields).encode()
        return request(self.process.socket_path, "POST", f"/VolumeDriver.{verb}", body)

    def done(self, verb: str, **fields: object) -> Answer:
        """A call that must succeed."""
        answer = self.call(verb, **fields)
        assert (answer.status, answer.json["Err"]) == (200, ""), answer.body
        return answer

    def error(self, status: int, verb: str, **fields: object) -> str:
        """A call that must fail with `status`; returns its sentence."""
        answer = self.call(verb, **fields)
        assert answer.status == status, answer.body
        sentence: str = answer.json["Err"]
        assert sentence
        assert "Traceback" not in sentence
        return sentence


class VolumeDriver(Calls):
    """On a host of the test's own."""

    def __init__(self, host: Host, process: Running) -> None:
        super().__init__(process)
        self.host = host
        self.root = f"{host.directory}/root"

    def create(self, name: str, host_path: str, **options: str) -> None:
        self.done("Create", Name=name, Opts={"host_path": host_path, **options})

    def mount(self, name: str, mount_id: str) -> Path:
        """The volume's files, as the test reaches them."""
        answered = self.done("Mount", Name=name, ID=mount_id).json["Mountpoint"]
        assert answered == self.mountpoint(name)
        return Path(f"/proc/{self.host.pid}/root{answered}")

    def mountpoint(self, name: str) -> str:
        return mountpoint(self.root, name)

    def mounts(self) -> list[Mount]:
        """Mounts below ROOT/volumes as the kernel has them for the driver, which the host must have as well."""
        below = [
            mount
            for mount in read_mounts(f"/proc/{self.process.pid}/mountinfo")
            if mount.mountpoint.startswith(f"{self.root}/volumes/")
        ]
        for mount in below:
            assert mount_at(self.host.mounts(), mount.mountpoint) is not None, "did not reach the host"
        return below

    def references(self, name: str) -> int:
        count: int = self.done("Get", Name=name).json["Volume"]["Status"]["references"]
        return count

    def state(self) -> object:
        """What must be the same after a call that was refused."""
        return self.done("List").json, self.mounts(), sorted((self.host.files / "root/volumes").iterdir())


def command(host: Host, socket_path: str, *options: str) -> list[str]:
    """How to start a driver on `host` as in a managed plugin: mounts propagate, the namespace is its own."""
    driver = [sys.executable, "-m", "volumedriver", "--socket", socket_path, "--root", f"{host.directory}/root"]
    return [*host.entering_as_plugin, *driver, "--hostfs", str(host.directory), *options]


@contextlib.contextmanager
def driver_on(host: Host, *options: str) -> Iterator[VolumeDriver]:
    """A driver on `host`. What it mounted stays there when it ends."""
    socket_path = str(host.directory.parent / "driver.sock")
    with running(command(host, socket_path, *options), DIES_WITH_THE_TESTS, socket_path) as process:
        yield VolumeDriver(host, process)
