"""What the driver tells of itself: `GET /brokervol/status`, which `brokervol status` shows, and the metrics.

All of it is from memory: asking touches no mount, and waits for no call that does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from brokervol import __version__
from storage.definitions import utc_now
from volumedriver.driver import Driver
from volumedriver.health import ServerHealth, State
from volumedriver.nfs_servers import Servers
from volumedriver.options import NfsOptions, UnusableOptions
from volumedriver.volume import Volume
from volumedriver.workers import Workers

STALE, UNUSABLE = "stale", "unusable"
BAD = (STALE, State.UNREACHABLE.value, UNUSABLE)
"""What a volume's health is if containers cannot work with it."""


class Health(NamedTuple):
    """How a volume does, in a word, and why, in a clause. `since` is told of those whose server is unreachable."""

    word: str
    reason: str
    since: datetime | None = None


class Told(NamedTuple):
    """One moment. `health` is that of each volume of which it is known, by name."""

    volumes: list[Volume]
    servers: list[ServerHealth]
    health: Mapping[str, Health]


class Status:
    """The driver's volumes, servers and workers as they are known."""

    def __init__(self, driver: Driver, servers: Servers, workers: Workers, root: str) -> None:
        self._driver = driver
        self._servers = servers
        self._workers = workers
        self._root = root
        self._started = utc_now()

    def told(self) -> Told:
        """What is known now."""
        volumes = self._driver.list()
        health = {volume.name: found for volume in volumes if (found := self.health(volume)) is not None}
        return Told(volumes, self._servers.report(), health)

    def workers(self) -> Mapping[str, int]:
        """How many processes for NFS are `idle` and `busy`."""
        return self._workers.counts()

    def report(self) -> dict[str, Any]:
        """The same as a document; see docs/operations.md for its fields."""
        told = self.told()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "root": self._root,
            "started": self._started.isoformat(),
            "uptime_s": round((utc_now() - self._started).total_seconds(), 3),
            "workers": dict(self.workers()),
            "volumes": [_described(volume, told.health.get(volume.name)) for volume in told.volumes],
            "nfs_servers": [_server(server) for server in told.servers],
            "problems": [*_problems(told)],
        }

    def health(self, volume: Volume) -> Health | None:
        """How the volume does; None where that is not known."""
        if isinstance(volume.options, UnusableOptions):
            return Health(UNUSABLE, volume.options.problem)
        if volume.stale:
            return Health(STALE, volume.stale)
        if isinstance(volume.options, NfsOptions) and (server := self._servers.health(volume.options)):
            since = server.since if server.state is State.UNREACHABLE else None
            return Health(server.state.value, server.reason, since)
        return None


def source(options: Mapping[str, str]) -> str:
    """Where a volume's files are, in a word, from its options; empty where only its broker can tell."""
    if bucket := options.get("bucket_name"):
        return "/".join(filter(None, (f"s3://{bucket}", options.get("prefix", "").strip("/"))))
    return options.get("nfs_path") or options.get("host_path") or ""


def _problems(told: Told) -> Iterator[dict[str, str]]:
    """What keeps containers from their files. Of a server it is told once, not for each of its volumes."""
    for name, health in told.health.items():
        if health.word in (STALE, UNUSABLE):
            yield {"subject": f"volume {name}", "health": health.word, "reason": health.reason}
    for server in told.servers:
        if server.state is State.UNREACHABLE:
            yield {"subject": f"NFS server {server.server}", "health": server.state.value, "reason": server.reason}


def _described(volume: Volume, health: Health | None) -> dict[str, Any]:
    options = volume.options.effective
    return {
        "name": volume.name,
        "type": options.get("type", ""),
        "source": source(options),
        "read_only": volume.options.read_only,
        "created": volume.created.isoformat(),
        "mountpoint": volume.mountpoint,
        "is_mounted": volume.is_mounted,
        "references": [{"id": mount_id, "count": count} for mount_id, count in volume.references.items()],
        "shown": volume.shown._asdict() if volume.shown is not None else None,
        "host_path": volume.options.host_path,
        "health": health.word if health is not None else None,
        "reason": health.reason if health is not None else "",
    }


def _server(server: ServerHealth) -> dict[str, Any]:
    return {
        "server": server.server,
        "state": server.state.value,
        "since": server.since.isoformat(),
        "reason": server.reason,
        "round_trip_ms": server.round_trip_ms,
        "retransmits": server.retransmits,
        "is_open": server.is_open,
    }
