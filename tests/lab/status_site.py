"""A driver with volumes and a sidecar that serves its status: what is asked on the port, looked at, and drawn."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path

from lab.namespaces import Host
from lab.processes import Running, running
from lab.unix_http import Answer
from lab.volume_driver import DIES_WITH_THE_TESTS, VolumeDriver, driver_on


class Site:
    """A driver and a sidecar, which has the workspace `data`, and the status on a port.

    Attributes:
        address: host and port of the status, as a URL has them.
    """

    def __init__(self, driver: VolumeDriver, sidecar: Running, root: Path) -> None:
        self.driver, self.sidecar, self.root = driver, sidecar, root
        self.operators_socket = str(root / ".state/operators.sock")
        sidecar.wait_for_log("status is served")
        (self.address,) = re.findall(r'"address": "([^"]+)"', sidecar.log())

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """What is answered on the port."""
        connection = HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()


@contextlib.contextmanager
def status_site(directory: Path) -> Iterator[Site]:
    """Volumes of all types, some mounted; and an NFS server that refuses connections."""
    host = Host(directory / "host")
    for path in ("imagery", "products"):
        (host.files / "srv" / path).mkdir(parents=True)
    options = ("--nfs-mount-timeout-s", "2", "--nfs-boot-s", "0")
    try:
        with socket.socket() as closed, driver_on(host, *options) as driver:
            closed.bind(("127.0.0.1", 0))  # so that nobody else listens there
            port = f"port={closed.getsockname()[1]}"
            driver.create("imagery", "/srv/imagery", read_only="true")
            driver.create("products", "/srv/products")
            driver.done("Create", Name="broker", Opts={"type": "sidecar"})
            driver.done("Create", Name="scenes", Opts={"bucket_name": "scenes", "prefix": "2026/"})
            driver.done("Create", Name="archive", Opts={"nfs_path": "127.0.0.1:/archive", "mount_options": port})
            for volume, mount_id in (("imagery", "a"), ("imagery", "b"), ("products", "a"), ("broker", "a")):
                driver.mount(volume, mount_id * 64)
            driver.error(503, "Mount", Name="archive", ID="a" * 64)
            with sidecar_of(directory, driver.process.socket_path) as sidecar:
                yield Site(driver, sidecar, directory / "root")
    finally:
        host.close()


@contextlib.contextmanager
def sidecar_of(directory: Path, driver_socket: str, listen: str = "127.0.0.1:0") -> Iterator[Running]:
    """A sidecar in its own view, which serves the status of the driver."""
    data, file, root = directory / "data", directory / "workspaces.json", directory / "root"
    data.mkdir(exist_ok=True)
    file.write_text(json.dumps({"data": {"broker": {"type": "host", "host_path": str(data)}}}))
    environment: Mapping[str, str] = {
        **DIES_WITH_THE_TESTS,
        "BROKERVOL_VIEW": "self",
        "BROKERVOL_WORKSPACES": str(file),
        "BROKERVOL_ROOT": str(root),
        "BROKERVOL_SOCKET": driver_socket,
        "STATUS_LISTEN": listen,
    }
    socket_path = os.path.join(root, "sidecar", "broker.sock")
    with running([sys.executable, "-m", "sidecar"], environment, socket_path) as process:
        yield process
