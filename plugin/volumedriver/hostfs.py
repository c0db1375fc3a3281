"""The view of the host's files in a managed plugin, kept up to date.

config.json asks for `/` at `/hostfs` as a slave, so that a disk that the host mounts later is seen here, and one
that it unmounts is let go. runc does not give that for `/`: it makes the mount that holds the plugin's root
private first, and with it the copy. Then a host's `umount` leaves the file system mounted here, and its device
busy, for as long as the plugin runs. So the driver takes the view anew at its start, from the engine's mount
namespace.
"""

from __future__ import annotations

import os

import structlog

from storage.mountinfo import mount_at, read_mounts
from volumedriver import mountcalls, mounter
from volumedriver.errors import reason

log = structlog.get_logger()


def follow_host(hostfs: str) -> None:
    """Make `hostfs` a slave of the host's root directory. Needs a process that has no threads yet.

    Does nothing where `hostfs` is not a copy of the engine's root directory: outside a managed plugin. A view
    that cannot be renewed is kept as it is, which the log tells.
    """
    try:
        engine = _engine_process()
        if hostfs == "/" or engine is None or not _is_copy_of_root(hostfs, engine):
            return
        mounter.replace(hostfs, _host_tree(engine))
        log.info("following the host's mounts", hostfs=hostfs)
    except OSError as error:
        log.warning("mounts that the host makes later are not seen", hostfs=hostfs, reason=reason(error))


def _engine_process() -> int | None:
    """Our nearest ancestor with another mount namespace: in a managed plugin the engine's containerd-shim."""
    own = os.stat("/proc/self/ns/mnt")
    pid = os.getppid()
    while pid > 0:
        theirs = os.stat(f"/proc/{pid}/ns/mnt")
        if (theirs.st_dev, theirs.st_ino) != (own.st_dev, own.st_ino):
            return pid
        pid = _parent(pid)
    return None


def _is_copy_of_root(hostfs: str, engine: int) -> bool:
    """Whether `hostfs` shows the engine's root directory, and exchanging it is our own affair.

    Were the mount above it shared, as it is outside a plugin, the exchange would happen on the host as well.
    """
    mounts = read_mounts()
    here = mount_at(mounts, hostfs)
    there = mount_at(read_mounts(f"/proc/{engine}/mountinfo"), "/")
    if here is None or there is None or not here.shows_same_as(there):
        return False
    return not any(mount.is_shared for mount in mounts if mount.mount_id == here.parent_id)


def _host_tree(engine: int) -> int:
    """A detached copy of everything below `/` in the engine's mount namespace, following it."""
    own, theirs = _namespace("self"), _namespace(str(engine))
    try:
        mountcalls.enter(theirs)
        try:
            return mounter.follower_of_root()
        finally:
            mountcalls.enter(own)
    finally:
        os.close(own)
        os.close(theirs)


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def _namespace(process: str) -> int:
    return os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY)
