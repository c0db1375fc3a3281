"""Who still sees a volume: asked of the kernel, because the engine may have been killed before it could say.

A container holds a volume by a mount in its own mount namespace that shows the same directory of the same file
system as was mounted at the volume's mountpoint, or a directory in it (a sub-path), or an earlier token of the
volume, which it got before a new one was made. Kinds of mount that show that too and hold nothing:

* our own mountpoint, which every copy of the host's mount namespace has as well, ending in `volumes/HASH`;
* what the host itself has mounted, where the volume is the root of a whole file system (`/mnt/disk`): the
  host's copy at that place, in each namespace that was copied from the host's;
* the same again below a place where a container was given the host's root (`/hostfs`, a monitoring agent);
* the files that the engine puts into every container, where the volume is a directory that has them in it.

Whoever mounts the same host directory without the volume counts as a holder: we would rather refuse to remove.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from storage.mountinfo import Mount, mount_at, parse_mounts, read_mounts
from volumedriver.volume import SOURCE_OF_TOKENS, Shown

_MOUNTPOINT = re.compile(r"/volumes/[0-9a-f]{40}$")  # as storage.definitions.mountpoint makes them
_OF_THE_ENGINE = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


class Wanted(NamedTuple):
    """A volume to look for: what was mounted for it, and where the host has the directory, if it is one of its."""

    shown: Shown
    host_path: str | None


class Holders(Protocol):
    """Tells who holds volumes."""

    def of(self, wanted: Wanted) -> list[int]:
        """A process of each mount namespace, other than this process's, that holds the volume."""

    def held(self, wanted: Mapping[str, Wanted]) -> set[str]:
        """Those of the volumes, by name, that somebody holds. Cheaper than asking for each."""


class Namespaces:
    """Asks the mount namespaces of all running processes that `proc` shows."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc

    def of(self, wanted: Wanted) -> list[int]:
        return [pid for pid, held in self._held({"": wanted}) if held]

    def held(self, wanted: Mapping[str, Wanted]) -> set[str]:
        return {name for _, held in self._held(wanted) for name in held}

    def _held(self, wanted: Mapping[str, Wanted]) -> Iterator[tuple[int, set[str]]]:
        """What each namespace holds. They are many, and so are their mounts: each is read once."""
        if not wanted:
            return
        host = _Host(_mounts(self._proc, "1", None))
        devices = host.devices | {volume.shown.device for volume in wanted.values()}
        by_shown: dict[Shown, list[str]] = {}
        for name, volume in wanted.items():
            by_shown.setdefault(volume.shown.holding, []).append(name)
        for pid in _one_of_each_other_namespace(self._proc):
            mounts = _mounts(self._proc, pid, devices)
            views = host.views(mounts)
            yield (
                int(pid),
                {
                    name
                    for mount in mounts
                    for name in _shown_names(mount, by_shown)
                    if not any(host.has(mount, view, wanted[name].host_path) for view in views)
                },
            )


class _Host:
    """The host's own mounts, to tell a view of them from a container's mount."""

    def __init__(self, mounts: list[Mount]) -> None:
        self._root = mount_at(mounts, "/")
        self._places = {(mount.device, mount.root, mount.mountpoint) for mount in mounts}

    @property
    def devices(self) -> set[str]:
        """The device of the host's root, without which no view can be told."""
        return {self._root.device} if self._root is not None else set()

    def views(self, mounts: list[Mount]) -> list[str]:
        """Where `mounts`, of one namespace, show the host's root; without the final slash."""
        if self._root is None:
            return []
        return [mount.mountpoint.rstrip("/") for mount in mounts if mount.shows_same_as(self._root)]

    def has(self, mount: Mount, view: str, host_path: str | None) -> bool:
        """Whether `mount`, seen below `view`, is a mount of the host itself."""
        if not mount.mountpoint.startswith(view + "/"):
            return False
        path = mount.mountpoint[len(view) :]
        return path == host_path or (mount.device, mount.root, path) in self._places


def _shown_names(mount: Mount, by_shown: Mapping[Shown, list[str]]) -> Iterator[str]:
    """The volumes whose directory `mount` shows, or a directory in it."""
    if _MOUNTPOINT.search(mount.mountpoint) is not None:
        return
    root, inner = mount.root, None
    while root != inner:
        yield from by_shown.get(Shown(mount.device, root, mount.source).holding, ())
        if mount.mountpoint in _OF_THE_ENGINE:
            return
        root, inner = os.path.dirname(root), root


def _one_of_each_other_namespace(proc: str) -> Iterator[str]:
    seen = {_namespace(proc, "self")}
    for pid in os.listdir(proc):
        if pid.isdigit() and (namespace := _namespace(proc, pid)) not in seen:
            seen.add(namespace)
            yield pid


def _namespace(proc: str, pid: str) -> str:
    """The identity of the process's mount namespace; one of its own where it may not be asked."""
    try:
        return os.readlink(f"{proc}/{pid}/ns/mnt")
    except OSError:
        return pid


def _mounts(proc: str, pid: str, devices: set[str] | None) -> list[Mount]:
    """The mounts of a process, of the file systems wanted: most are of none."""
    path = f"{proc}/{pid}/mountinfo"
    try:
        if devices is None:
            return read_mounts(path)
        numbers, token = {device.encode("ascii") for device in devices}, f" {SOURCE_OF_TOKENS}".encode()
        with open(path, "rb") as lines:
            return list(parse_mounts(line for line in lines if line.split(b" ", 3)[2] in numbers or token in line))
    except OSError:  # the process has ended
        return []
