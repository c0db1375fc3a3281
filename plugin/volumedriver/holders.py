"""Who still sees a volume: asked of the kernel, because the engine may have been killed before it could say.

A container holds a volume by a mount in its own mount namespace that shows the same directory of the same file
system as was mounted at the volume's mountpoint, or a directory in it (a sub-path), or an earlier token of the
volume, which it got before a new one was made. Kinds of mount that show that too and hold nothing:

* our own mountpoint, which every copy of the host's mount namespace has as well, ending in `volumes/HASH`;
* what the host itself has mounted, where the volume is the root of a whole file system (`/mnt/disk`): the
  host's copy at that place, in each namespace that was copied from the host's;
* the same again below a place where a container was given the host's root (`/hostfs`, a monitoring agent);
* the files that the engine puts into every container, where the volume is a directory that has them in it.

Whoever mounts the same directory without the volume counts as a holder: we would rather refuse to remove. Of an
NFS export the server's name and the path count, not the device: mounted anew it may be another one. And of a
directory that was removed, and made anew, both count: the kernel tells the one by the other's path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from storage.mountinfo import Mount, mount_at, parse_mounts, read_mounts
from volumedriver.volume import SOURCE_OF_TOKENS, Shown

_MOUNTPOINT = re.compile(r"/volumes/[0-9a-f]{40}$")  # as storage.definitions.mountpoint makes them
_OF_THE_ENGINE = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_NFS_TYPES = frozenset(("nfs", "nfs4"))
_OF_ANY_DEVICE = (f" {SOURCE_OF_TOKENS}".encode(), b" - nfs")  # in lines of mountinfo


class Wanted(NamedTuple):
    """A volume to look for: what was mounted for it, and where the host has the directory, if it is one of its."""

    shown: Shown
    host_path: str | None


class Hold(NamedTuple):
    """Where a volume is held: a mount in the mount namespace of process `pid`, 0 for this process's own.

    `is_removed` says whether it shows the volume's directory as it was until that was removed on the host.
    """

    pid: int
    mountpoint: str
    mount_id: int
    device: str
    is_removed: bool = False


Held = Mapping[str, Sequence[Hold]]
"""By the names of those volumes that are held."""


class Holders(Protocol):
    """Tells who holds volumes."""

    def held(self, wanted: Mapping[str, Wanted]) -> Held:
        """Those of the volumes that somebody other than this process holds, and where. Of processes that share a
        mount namespace one is named. Cheaper than asking for each volume.
        """


class Namespaces:
    """Asks the mount namespaces of all running processes that `proc` shows."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc

    def held(self, wanted: Mapping[str, Wanted]) -> dict[str, list[Hold]]:
        found: dict[str, list[Hold]] = {}
        for name, place in self._places(wanted):
            found.setdefault(name, []).append(place)
        return found

    def _places(self, wanted: Mapping[str, Wanted]) -> Iterator[tuple[str, Hold]]:
        """Namespaces are many, and so are their mounts: each is read once."""
        if not wanted:
            return
        host = _Host(_mounts(self._proc, "1", None))
        devices = host.devices | {volume.shown.device for volume in wanted.values()}
        by_shown = _by_shown(wanted)
        for pid in _one_of_each_other_namespace(self._proc):
            mounts = _mounts(self._proc, pid, devices)
            views = host.views(mounts)
            for mount in mounts:
                for name in {*_shown_names(mount, by_shown)}:
                    if not any(host.has(mount, view, wanted[name].host_path) for view in views):
                        yield name, _hold(int(pid), mount, wanted[name].shown)


def _hold(pid: int, mount: Mount, shown: Shown) -> Hold:
    is_removed = Shown(mount.device, mount.root, mount.source).is_removed_of(shown)
    return Hold(pid, mount.mountpoint, mount.mount_id, mount.device, is_removed)


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


def _by_shown(wanted: Mapping[str, Wanted]) -> dict[Shown, list[str]]:
    names: dict[Shown, list[str]] = {}
    for name, (shown, _) in wanted.items():
        for kind in (shown.holding, shown.export):
            if kind is not None:
                names.setdefault(kind, []).append(name)
    return names


def _shown_names(mount: Mount, by_shown: Mapping[Shown, list[str]]) -> Iterator[str]:
    """The volumes whose directory `mount` shows, or a directory in it."""
    if _MOUNTPOINT.search(mount.mountpoint) is not None:
        return
    shown = Shown(mount.device, mount.root, mount.source)
    kind = (shown.export if mount.fs_type in _NFS_TYPES else None) or shown.holding
    root, inner = mount.root, None
    while root != inner:
        yield from by_shown.get(kind._replace(root=root), ())
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
        numbers = {device.encode("ascii") for device in devices}
        with open(path, "rb") as lines:
            return list(
                parse_mounts(
                    line
                    for line in lines
                    if line.split(b" ", 3)[2] in numbers or any(word in line for word in _OF_ANY_DEVICE)
                )
            )
    except OSError:  # the process has ended
        return []
