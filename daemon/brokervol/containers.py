"""Which containers have which volumes: asked of the engine, or else of the kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from storage import linux
from volumedriver.holders import Namespaces, Wanted
from volumedriver.volume import Shown

_ENGINE_TIMEOUT_S = 5


class Holder(NamedTuple):
    """A container that has a volume, or another process.

    Attributes:
        container: its name; None if only the engine could have told it.
        id: of the container; None for a process of no container.
        state: as the engine has it: running, paused, exited, created ...
        pid: a process in it; None if the engine was asked.
    """

    container: str | None
    id: str | None
    state: str
    pid: int | None


Holders = Mapping[str, list[Holder]]


def of_engine(volumes: Iterable[str]) -> Holders | None:
    """The containers of this host's engine (`DOCKER_HOST`), running or not, by volume; None if none answers."""
    try:
        import docker  # noqa: PLC0415  # of the extra `host`
        from docker.errors import DockerException  # noqa: PLC0415
    except ImportError:
        return None
    try:
        client = docker.from_env(timeout=_ENGINE_TIMEOUT_S)
        try:
            containers = client.api.containers(all=True)  # one request, where the SDK's own list makes one each
        finally:
            client.close()
    except (DockerException, OSError):
        return None
    found: dict[str, list[Holder]] = {name: [] for name in volumes}
    for container in containers:
        for name in {*_volumes(container)} & found.keys():
            found[name].append(Holder(_name(container), container["Id"], container["State"], None))
    return found


def _volumes(container: Mapping[str, Any]) -> Iterator[str]:
    for mount in container["Mounts"]:
        if mount["Type"] == "volume" and mount["Driver"] != "local":
            yield mount["Name"]


def _name(container: Mapping[str, Any]) -> str:
    """Its own: a link to it is a name with another slash in it."""
    names = sorted(container["Names"], key=lambda name: str(name).count("/"))
    return str(names[0]).lstrip("/")


def of_kernel(volumes: Iterable[Mapping[str, Any]], proc: str = "/proc") -> Holders:
    """The processes that have the volumes, as `/brokervol/status` describes them, in their mount namespaces."""
    wanted = {
        volume["name"]: Wanted(Shown(**volume["shown"]), volume["host_path"])
        for volume in volumes
        if volume["is_mounted"] and volume["shown"] is not None
    }
    held = Namespaces(proc).held(wanted)
    return {
        name: [
            Holder(None, _container_id(proc, pid), "running", pid)
            for pid in dict.fromkeys(place.pid for place in places)
            if pid  # not ours
        ]
        for name, places in held.items()
    }


def _container_id(proc: str, pid: int) -> str | None:
    """As its cgroup tells it: the innermost one that is called like a container."""
    with contextlib.suppress(OSError):  # the process has ended
        if found := linux.containers_of(f"{proc}/{pid}"):
            return found[-1]
    return None
