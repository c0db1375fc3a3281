"""Telling who still has mounted what is no more, on the host or its NFS server: only a restart of theirs helps."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import structlog

from storage import linux
from volumedriver.holders import Hold
from volumedriver.options import NfsOptions
from volumedriver.volume import Volume

log = structlog.get_logger()

_SHOWN_ID_LENGTH = 12
_MOST_SHOWN = 5


def noted(volume: Volume, holds: Sequence[Hold], proc: str = "/proc") -> Volume:
    """The volume with `stale` as it is for those who hold it so. What is new is told in the log."""
    pids = sorted({hold.pid for hold in holds})
    containers = {pid: container for pid in pids if (container := _container_of(pid, proc))}
    sentence = f"{_cause(volume)}, restart them: {_named(pids, containers)}" if pids else ""
    if sentence and sentence != volume.stale:
        ids = sorted({*containers.values()})
        log.warning("stale mount is in use", volume=volume.name, pids=pids, containers=ids, reason=sentence)
    elif volume.stale and not sentence:
        log.info("stale mount is in use no more", volume=volume.name)
    return replace(volume, stale=sentence)


def _container_of(pid: int, proc: str = "/proc") -> str | None:
    """The id of the container that the process is in, by its control groups; None if in none, or ended."""
    with contextlib.suppress(OSError):
        if found := linux.containers_of(f"{proc}/{pid}"):
            return found[0]
    return None


def _cause(volume: Volume) -> str:
    if isinstance(volume.options, NfsOptions):
        return "the server does not know any more what these have mounted"
    return "the directory that these have mounted was removed on the host"


def _named(pids: Sequence[int], containers: dict[int, str]) -> str:
    named = []
    for pid in pids[:_MOST_SHOWN]:
        place = f" of container {containers[pid][:_SHOWN_ID_LENGTH]}" if pid in containers else ""
        named.append(f"process {pid}{place}")
    if len(pids) > _MOST_SHOWN:
        named.append(f"{len(pids) - _MOST_SHOWN} more")
    return ", ".join(named)
