"""Who still sees a volume: asked of the kernel, because the engine may have been killed before it could say.

A container holds a volume by a mount in its own mount namespace that shows the same directory of the same file
system as our mountpoint. Three kinds of mount show that too and hold nothing:

* our own mountpoint, which every copy of the host's mount namespace has as well, ending in `volumes/HASH`;
* what the host itself has mounted, where the volume is the root of a whole file system (`/mnt/disk`): the
  host's copy at that place, in each namespace that was copied from the host's;
* the same again below a place where a container was given the host's root (`/hostfs`, a monitoring agent).

Whoever mounts the same host directory without the volume counts as a holder: we would rather refuse to remove.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from storage.mountinfo import Mount, mount_at, read_mounts

_MOUNTPOINT = re.compile(r"/volumes/[0-9a-f]{40}$")  # as storage.definitions.mountpoint makes them


def holders(mountpoint: str, host_path: str | None, proc: str = "/proc") -> list[int]:
    """A process of each mount namespace, other than this process's, that holds the volume at `mountpoint`.

    `host_path` is where the host has the directory, if it is one of the host's. Nobody holds a volume that is
    not mounted.
    """
    ours = mount_at(read_mounts(f"{proc}/self/mountinfo"), mountpoint)
    if ours is None:
        return []
    host = _Host(_mounts(proc, "1"), host_path)
    return [int(pid) for pid in _one_of_each_other_namespace(proc) if _is_held(ours, _mounts(proc, pid), host)]


class _Host:
    """The host's own mounts, to tell a view of them from a container's mount."""

    def __init__(self, mounts: list[Mount], host_path: str | None) -> None:
        self._root = mount_at(mounts, "/")
        self._places = {(mount.device, mount.root, mount.mountpoint) for mount in mounts}
        self._host_path = host_path

    def views(self, mounts: list[Mount]) -> list[str]:
        """Where `mounts`, of one namespace, show the host's root; without the final slash."""
        if self._root is None:
            return []
        return [mount.mountpoint.rstrip("/") for mount in mounts if mount.shows_same_as(self._root)]

    def has(self, mount: Mount, view: str) -> bool:
        """Whether `mount`, seen below `view`, is a mount of the host itself."""
        if not mount.mountpoint.startswith(view + "/"):
            return False
        path = mount.mountpoint[len(view) :]
        return path == self._host_path or (mount.device, mount.root, path) in self._places


def _is_held(ours: Mount, mounts: list[Mount], host: _Host) -> bool:
    candidates = [
        mount for mount in mounts if mount.shows_same_as(ours) and _MOUNTPOINT.search(mount.mountpoint) is None
    ]
    views = host.views(mounts) if candidates else []
    return any(not any(host.has(mount, view) for view in views) for mount in candidates)


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


def _mounts(proc: str, pid: str) -> list[Mount]:
    try:
        return read_mounts(f"{proc}/{pid}/mountinfo")
    except OSError:  # the process has ended
        return []
