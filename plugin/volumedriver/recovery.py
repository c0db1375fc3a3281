"""Making memory, disk and kernel agree when the driver starts.

Four witnesses are compared. The *definitions* say which volumes there are. The *references* say which Mount IDs
hold which volume, as far as this driver was told, and what was shown to them. The *mounts* are what the kernel
has below `ROOT/volumes` now; the kernel is right about what is mounted. The *mount namespaces* of running
processes tell who still uses it. What each mismatch means is a line of the table in docs/recovery.md, whose
numbers stand below; what happens later, while the driver runs, is `reconcile`'s.

`decide` is a pure function of the witnesses; `recover` asks them, does what was decided and logs each mismatch
with its reason. No file system is touched: one that hangs must not keep the driver from answering. Done twice it
changes nothing more, so a crash during recovery is one of its own cases.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from storage.definitions import Definition
from volumedriver.errors import MountFailed
from volumedriver.holders import Holders, Wanted
from volumedriver.mounter import Mounter
from volumedriver.store import References, ReferenceStore, Verb
from volumedriver.volume import Shown, Volume

log = structlog.get_logger()

LOST_ID = "lost-references"
"""Stands for all Mount IDs of a volume whose references were lost. Nobody will give it back."""


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
    held: Collection[str],
    *,
    has_rebooted: bool,
) -> Plan:
    """Compare the witnesses; see docs/recovery.md.

    Args:
        mountpoints: of each defined volume.
        references: as they were recorded.
        mounted: the mountpoints that the kernel has.
        held: the volumes that are known to be in some process's mount namespace.
        has_rebooted: the references belong to an earlier boot of the machine.
    """
    plan = Plan()
    for volume, counts in references.items():
        mountpoint = mountpoints.get(volume)
        if has_rebooted:  # 1
            plan.dropped[volume] = "the machine was restarted"
        elif mountpoint is None:  # 6
            plan.dropped[volume] = "no volume of this name is defined"
        elif mountpoint not in mounted and volume not in held:  # 2
            plan.dropped[volume] = "it is not mounted any more, and no process has it"
        else:  # 3, 4
            plan.adopted[volume] = dict(counts)
    adopted = {mountpoints[volume] for volume in plan.adopted}
    defined = set(mountpoints.values())
    for mountpoint in mounted:
        if mountpoint not in defined:  # 6
            plan.unmounted[mountpoint] = "no volume with this mountpoint is defined"
        elif mountpoint not in adopted:  # 5
            plan.unmounted[mountpoint] = "nobody holds a reference to it"
    return plan


def settle_intents(references: ReferenceStore) -> list[Definition]:
    """Finish or undo the calls that an earlier process died in.

    Returns:
        What was being created. That touches the host's files, and is for later.
    """
    unfinished = []
    for intent in references.intents():
        name, detail = intent.volume, intent.detail
        log.warning("an earlier driver died in a call", volume=name, call=intent.verb)
        if intent.verb is Verb.CREATE:  # 9
            unfinished.append(Definition(name, detail["options"], datetime.fromisoformat(detail["created"])))
        else:  # 10
            references.set(name, detail["mount_id"], detail["count"])
    return unfinished


@dataclass(frozen=True, slots=True)
class Scene:
    """Where the witnesses are."""

    directory: str
    store: ReferenceStore
    mounter: Mounter
    holders: Holders
    boot_id: str


def recover(volumes: Mapping[str, Volume], scene: Scene) -> dict[str, tuple[Mapping[str, int], Shown | None]]:
    """Make the witnesses agree for all volumes; returns the references that hold, and what was shown for them."""
    store, mounter = scene.store, scene.mounter
    mountpoints = {volume.name: volume.mountpoint for volume in volumes.values()}
    mounted = mounter.mountpoints(scene.directory)
    recorded = store.shown()
    shown = {name: mounted[path][-1] for name, path in mountpoints.items() if path in mounted} | recorded
    has_rebooted = store.boot_id() != scene.boot_id
    references = store.load()
    doubted = {
        name: Wanted(shown[name], volumes[name].options.host_path)
        for name in (mountpoints if store.is_new else references)
        if name in shown and name in volumes and (mountpoints[name] in mounted) == store.is_new
    }
    if has_rebooted := has_rebooted and not store.is_new:
        store.begin_boot(scene.boot_id)
    held = {} if has_rebooted else scene.holders.held(doubted)
    if store.is_new:  # 7
        references = _replaced(held)
        store.begin_boot(scene.boot_id, dict.fromkeys(references, LOST_ID))
    plan = decide(mountpoints, references, mounted, held, has_rebooted=has_rebooted)
    _follow(plan, scene)
    _remove_leftovers(scene.directory, {mountpoints[name] for name in plan.adopted}, mounter)
    for name, counts in plan.adopted.items():
        if name in shown and name not in recorded:  # lost, or of an older version
            store.set_shown(name, shown[name])
        log.info("mount adopted", volume=name, mountpoint=mountpoints[name], references=len(counts))
    return {name: (counts, shown.get(name)) for name, counts in plan.adopted.items()}


def _replaced(held: Collection[str]) -> References:
    """References in the place of those that were lost."""
    for name in held:
        log.warning("references replaced", volume=name, reason="they were lost, and a process has the volume")
    return {name: {LOST_ID: 1} for name in held}


def _follow(plan: Plan, scene: Scene) -> None:
    for volume, reason in plan.dropped.items():
        log.warning("references dropped", volume=volume, reason=reason)
        scene.store.drop(volume)
    for mountpoint, reason in plan.unmounted.items():
        log.warning("unmounting", mountpoint=mountpoint, reason=reason)
        _survive(scene.mounter.unmount, mountpoint)


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
