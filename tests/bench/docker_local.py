"""Docker's own volume driver, by the engine's API: what mounting costs there, without what the engine does anyway.

`HEAD /containers/ID/archive` of a container that does not run makes the engine mount its volumes, look, and
unmount them. The same for a container with a bind of a directory in the volume's place is what the engine takes
without a volume driver; the difference is Mount and Unmount together.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from pathlib import Path
from typing import Any

from bench.calls import Caller
from bench.client import Client
from lab.unix_http import request

_MOUNTED, _PLAIN = "bench-mounted", "bench-plain"


class DockerVolumes:
    """A volume of a running engine, and one container with it beside one without, neither of which ever runs."""

    def __init__(self, socket_path: str, image: str) -> None:
        self._socket_path = socket_path
        self._image = image
        self._client = Client(socket_path)

    def prepare(self, directory: Path, driver: str = "local", **options: str) -> None:
        """Make the volume with these options of `driver`, and the containers. `directory` is the other's bind."""
        self._posted("/volumes/create", {"Name": _MOUNTED, "Driver": driver, "DriverOpts": options})
        for name, bound in ((_MOUNTED, _MOUNTED), (_PLAIN, directory)):
            content = {
                "Image": self._image,
                "Cmd": ["true"],
                "HostConfig": {"Binds": [f"{bound}:/mnt"], "NetworkMode": "none"},
            }
            self._posted(f"/containers/create?name={name}", content)

    def timings(self, count: int) -> dict[str, list[float]]:
        """The engine's overhead is measured right before each, so that both meet the same machine."""
        took_s = []
        for _ in range(count):
            overhead_s = self._looked(_PLAIN)
            took_s.append(self._looked(_MOUNTED) - overhead_s)
        return {"Mount and Unmount": took_s}

    def close(self) -> None:
        self._client.close()
        for path in (f"/containers/{_MOUNTED}", f"/containers/{_PLAIN}", f"/volumes/{_MOUNTED}"):
            with contextlib.suppress(OSError, http.client.HTTPException):  # the engine ends after this anyway
                request(self._socket_path, "DELETE", path)

    def _looked(self, container: str) -> float:
        return self._client.timed_of("HEAD", f"/containers/{container}/archive?path=/mnt")

    def _posted(self, path: str, content: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json"}
        answer = request(self._socket_path, "POST", path, json.dumps(content).encode(), **headers)
        if answer.status != 201:
            raise RuntimeError(f"the engine answered {path} by {answer.status}: {answer.body!r}")


def calls_of_local_driver(volumes: DockerVolumes, count: int) -> Caller:
    """Docker's local driver, with what `volumes` was prepared for."""
    return Caller("Docker's local driver", volumes.timings, count, "by the engine, whose overhead is taken off")
