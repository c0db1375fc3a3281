"""Making memory, disk and kernel agree when the driver starts.

Three witnesses are compared. The *definitions* say which volumes there are. The *references* say which Mount
IDs hold which volume, as far as this driver was told. The *mounts* are what the kernel has below
`ROOT/volumes` now; the kernel is right about what is mounted, and nobody is right about who still uses it
until asked (`holders`, when a volume is removed). What each mismatch means:

1.  **The boot id has changed.** The machine was restarted. No mount and no container of then is left, whatever
    the table says, and Mount IDs of then may come again: every reference is dropped.
2.  **Referenced, but not mounted.** `docker plugin disable -f` has detached everything below the propagated
    mount, or the driver died between recording a reference and mounting. Containers that ran keep their own
    mount. Their Unmount may still come for an ID that is unknown by then, and succeeds. A Mount mounts again.
    The references are dropped.
3.  **Referenced and mounted.** The driver was killed, updated or restarted while containers ran; the engine
    keeps what is below the propagated mount and mounts nothing again. The mount is adopted with all its
    counts: the Unmounts to come are those of the containers that run.
4.  **Mounted, but not referenced.** The driver died between forgetting the last reference and unmounting, or
    an unmount failed. Nobody was told of this mount, or everybody has given it back: it is unmounted, lazily,
    so that a container which has it after all loses nothing.
5.  **Mounted or referenced, but not defined.** The driver died while it removed the volume, or the
    definitions were lost or replaced. Without a definition nothing can be said or done about it by name:
    unmounted as in 4, its references dropped.
6.  **A mountpoint's directory, but nothing mounted.** The driver died between making or unmounting and
    removing the directory. It is removed if it is empty. One with files in it (somebody wrote there while
    nothing was mounted) is left for a human.
7.  **Defined, and nothing else.** A volume that nobody uses.

`decide` is a pure function of the witnesses; `recover` asks them, does what was decided and logs each mismatch
with its reason. Done twice it changes nothing more, so a crash during recovery is a case of the above.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import structlog

from volumedriver.errors import MountFailed
from volumedriver.mounter import Mounter
from volumedriver.store import References, ReferenceStore

log = structlog.get_logger()


@dataclass(slots=True)
class Plan:
    """What to do. `dropped` and `unmounted` map a volume or a mountpoint to the reason."""

    adopted: References = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unmounted: dict[str, str] = field(default_factory=dict)


def decide(
    mountpoints: Mapping[str, str],
    references: Mapping[str, Mapping[str, int]],
    mounted: Collection[str],
    *,
    has_rebooted: bool,
) -> Plan:
    """Compare the witnesses; see the head of this module.

    Args:
        mountpoints: of each defined volume.
        references: as they were recorded.
        mounted: the mountpoints that the kernel has.
        has_rebooted: the references belong to an earlier boot of the machine.
    """
    plan = Plan()
    for volume, counts in references.items():
        mountpoint = mountpoints.get(volume)
        if has_rebooted:
            plan.dropped[volume] = "the machine was restarted"
        elif mountpoint is None:
            plan.dropped[volume] = "no volume of this name is defined"
        elif mountpoint not in mounted:
            plan.dropped[volume] = "it is not mounted any more"
        else:
            plan.adopted[volume] = dict(counts)
    adopted = {mountpoints[volume] for volume in plan.adopted}
    defined = set(mountpoints.values())
    for mountpoint in mounted:
        if mountpoint not in defined:
            plan.unmounted[mountpoint] = "no volume with this mountpoint is defined"
        elif mountpoint not in adopted:
            plan.unmounted[mountpoint] = "nobody holds a reference to it"
    return plan


def recover(
    directory: str,
    mountpoints: Mapping[str, str],
    store: ReferenceStore,
    mounter: Mounter,
    boot_id: str,
) -> References:
    """Make the witnesses agree for all mountpoints in `directory`; returns the references that hold."""
    has_rebooted = store.boot_id() != boot_id
    plan = decide(mountpoints, store.load(), mounter.mountpoints(directory), has_rebooted=has_rebooted)
    if has_rebooted:
        store.begin_boot(boot_id)
    for volume, reason in plan.dropped.items():
        log.warning("references dropped", volume=volume, reason=reason)
        store.drop(volume)
    for mountpoint, reason in plan.unmounted.items():
        log.warning("unmounting", mountpoint=mountpoint, reason=reason)
        _survive(mounter.unmount, mountpoint)
    _remove_leftovers(directory, {mountpoints[volume] for volume in plan.adopted}, mounter)
    for volume, counts in plan.adopted.items():
        log.info("mount adopted", volume=volume, mountpoint=mountpoints[volume], references=len(counts))
    return plan.adopted


def _remove_leftovers(directory: str, adopted: Collection[str], mounter: Mounter) -> None:
    for name in os.listdir(directory):
        mountpoint = os.path.join(directory, name)
        if mountpoint not in adopted:
            _survive(mounter.unmount, mountpoint)


def _survive(action: Callable[[str], None], mountpoint: str) -> None:
    """One mount that cannot be undone must not keep the driver, and every other volume, from starting."""
    try:
        action(mountpoint)
    except MountFailed as error:
        log.warning("recovery goes on without", mountpoint=mountpoint, reason=str(error))
