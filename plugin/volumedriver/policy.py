"""Which directories of the host may be volumes, decided by whole path components.

The path is the truth because its resolution follows no symbolic link (`hostpaths`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from storage.mountinfo import Mount
from volumedriver.errors import HostPathRefused, shown
from volumedriver.options import path_problem

_SYSTEM = ("etc", "proc", "sys", "dev", "boot", "run", "usr", "bin", "sbin")
_ENGINE = ("/var/lib/docker", "/var/lib/containerd")
_PLUGIN_DIRECTORY = re.compile(r"^(/.+)/plugins/[0-9a-f]{64}/propagated-mount(?:/|$)")


@dataclass(frozen=True, slots=True)
class HostPathPolicy:
    """What this host refuses and allows.

    `owned` are directories of the engine and of the driver: neither they, nor anything in them, nor anything
    that contains them. `allowed` are the only directories to give out; empty allows all that is not refused.
    """

    owned: tuple[str, ...] = _ENGINE
    allowed: tuple[str, ...] = ()

    def check(self, path: str) -> None:
        """Raise HostPathRefused unless `path`, absolute and canonical, may be a volume."""
        fact = _system_fact(path) or _owned_fact(path, self.owned) or self._allowed_fact(path)
        if fact is not None:
            raise HostPathRefused(f"host_path {shown(path)} is refused: {fact}")

    def _allowed_fact(self, path: str) -> str | None:
        if not self.allowed or any(_is_within(path, allowed) for allowed in self.allowed):
            return None
        return f"ALLOWED_HOST_PATHS of this host allows {', '.join(self.allowed)} and what is beneath"


def parse_allowed(text: str) -> tuple[str, ...]:
    """The directories of a colon- or comma-separated list.

    Raises:
        ValueError: with a sentence, where one of them is not an absolute canonical path, or there is none.
    """
    paths = [part.strip() for part in re.split("[:,]", text)]
    canonical = [path.rstrip("/") or "/" for path in paths if path]
    for path in canonical:
        problem = path_problem(path) if path.isprintable() else "it holds a control character"
        if problem is not None:
            raise ValueError(f"the allowed host path {path!r} is not accepted: {problem}")
    if text and not canonical:  # it was meant to allow less than all
        raise ValueError("it names no directory; empty allows all but the system's")
    return tuple(canonical)


def owned_directories(mounts: Sequence[Mount], hostfs: str, root: str) -> tuple[str, ...]:
    """The directories of the engine and of the driver as host paths, found by what is mounted where.

    `root` is the driver's own directory. In a managed plugin the host knows it as
    `ENGINE/plugins/ID/propagated-mount`, which tells the engine's directory too.
    """
    seen = host_views(mounts, hostfs, root)
    engines = [match[1] for path in seen if (match := _PLUGIN_DIRECTORY.match(path))]
    return tuple(dict.fromkeys((*_ENGINE, *engines, *seen)))


def host_views(mounts: Sequence[Mount], hostfs: str, directory: str) -> list[str]:
    """Every path by which the host, visible at `hostfs`, shows what this process sees at `directory`."""
    place = _covering(mounts, directory)
    base = _covering(mounts, hostfs)
    if place is None or base is None:
        return []
    device, inner = place.device, _join(place.root, _below(directory, place.mountpoint))
    windows = [(base.device, _join(base.root, _below(hostfs, base.mountpoint)), "/")]
    windows += [
        (mount.device, mount.root, "/" + _below(mount.mountpoint, hostfs))
        for mount in mounts
        if _is_within(mount.mountpoint, hostfs) and mount.mountpoint != hostfs
    ]
    views = [
        _join(shown_at, _below(inner, root))
        for window_device, root, shown_at in windows
        if window_device == device and _is_within(inner, root)
    ]
    return list(dict.fromkeys(views))


def _system_fact(path: str) -> str | None:
    first = path[1:].partition("/")[0]
    if not first:
        return "a volume over the whole host would hold its system and its engine; name a directory beneath"
    if first in _SYSTEM or first.startswith("lib"):
        return f"/{first} belongs to the host's system"
    return None


def _owned_fact(path: str, owned: Iterable[str]) -> str | None:
    for directory in owned:
        if _is_within(path, directory):
            return f"{directory} belongs to the Docker engine or to brokervol"
        if _is_within(directory, path):
            return f"it contains {directory}, which belongs to the Docker engine or to brokervol"
    return None


def _is_within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or beneath it, by whole components."""
    return directory in {"/", path} or path.startswith(directory + "/")


def _below(path: str, directory: str) -> str:
    """`path` relative to `directory`, which it is within."""
    return path[len(directory.rstrip("/")) :].lstrip("/")


def _join(directory: str, below: str) -> str:
    return f"{directory.rstrip('/')}/{below}" if below else directory


def _covering(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount that `path` is on."""
    found = None
    for mount in mounts:
        if _is_within(path, mount.mountpoint) and (
            found is None or len(mount.mountpoint) >= len(found.mountpoint)
        ):
            found = mount
    return found
