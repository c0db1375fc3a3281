"""The verbs of the VolumeDriver protocol.

Get, List and Path are answered from memory: volumes are immutable records in one dictionary. What changes a
volume holds its lock by name, writes the disk, then the kernel, then memory; so a crash in between leaves a
case that `recovery` knows, and a failure leaves memory as it was.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import structlog

from storage.definitions import Definition, DefinitionStore, mountpoint, utc_now
from volumedriver import options as volume_options
from volumedriver.errors import VolumeConflict, VolumeInUse, VolumeNotFound, quoted
from volumedriver.locks import NamedLocks
from volumedriver.mounter import Mounter
from volumedriver.options import UnusableOptions, VolumeOptions
from volumedriver.recovery import recover
from volumedriver.sources import Sources
from volumedriver.store import ReferenceStore, state_errors
from volumedriver.volume import Volume, check_mount_id, check_name

log = structlog.get_logger()

LOCK_TIMEOUT_S = 20.0  # below the 25 s that every call should end in
_SHOWN_ID_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Parts:
    """What a driver is made of. `holders` tells which processes hold what is mounted at a mountpoint."""

    root: str
    definitions: DefinitionStore
    references: ReferenceStore
    mounter: Mounter
    sources: Sources
    holders: Callable[[str, str | None], list[int]]
    boot_id: str
    lock_timeout_s: float = LOCK_TIMEOUT_S


class Driver:
    """All volumes of this host. Making one recovers what an earlier process has left.

    Raises:
        StateUnavailable: the state on disk cannot be used.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._locks = NamedLocks(parts.lock_timeout_s)
        self._registry = threading.Lock()
        self._volumes = self._recovered()

    def create(self, name: str, given: Mapping[str, str]) -> None:
        """Define a volume. The same again succeeds and changes nothing.

        Raises:
            InvalidVolume, HostPathRefused: what was given is not accepted.
            VolumeConflict: the volume is defined with other options.
        """
        check_name(name)
        options = volume_options.parse(given)
        with self._locks.held(name):
            existing = self._find(name)
            if existing is not None:
                _refuse_difference(existing, options)
                return
            definition = Definition(name, options.effective, utc_now())
            with self._parts.sources.opened(options), self._definition_errors():
                self._parts.definitions.save(definition)
            self._put(Volume(name, options, definition.created, self._mountpoint(name)))
        log.info("volume created", volume=name, options=options.effective)

    def remove(self, name: str) -> None:
        """Forget a volume; its files stay.

        References that no process backs any more (the engine was killed and never sent Unmount) do not count.

        Raises:
            VolumeNotFound: no such volume.
            VolumeInUse: a container still holds it.
        """
        with self._locks.held(name):
            volume = self.get(name)
            if volume.references:
                self._refuse_held(volume)
            self._parts.mounter.unmount(volume.mountpoint)
            self._parts.references.drop(name)
            self._put(replace(volume, references={}))
            with self._definition_errors():
                self._parts.definitions.remove(name)
            with self._registry:
                del self._volumes[name]
        log.info("volume removed", volume=name)

    def mount(self, name: str, mount_id: str) -> str:
        """Take one more reference for `mount_id` and see to it that the volume is mounted.

        Returns:
            The mountpoint.
        """
        check_mount_id(mount_id)
        with self._locks.held(name):
            volume = self.get(name)
            count = volume.references.get(mount_id, 0)
            self._parts.references.set(name, mount_id, count + 1)
            try:
                self._ensure_mounted(volume)
            except BaseException:
                self._parts.references.set(name, mount_id, count)
                raise
            self._put(replace(volume, references={**volume.references, mount_id: count + 1}))
        log.info("volume mounted", volume=name, id=mount_id[:_SHOWN_ID_LENGTH])
        return volume.mountpoint

    def unmount(self, name: str, mount_id: str) -> None:
        """Give one reference of `mount_id` back; the last one of the volume unmounts it.

        A volume or an ID that is not known succeeds: it is what the caller wanted.
        """
        with self._locks.held(name):
            volume = self._find(name)
            if volume is None or mount_id not in volume.references:
                log.info("nothing to unmount", volume=quoted(name), id=mount_id[:_SHOWN_ID_LENGTH])
                return
            count = volume.references[mount_id] - 1
            remaining = {**volume.references, mount_id: count}
            if not count:
                del remaining[mount_id]
            self._parts.references.set(name, mount_id, count)
            self._put(replace(volume, references=remaining))
            if not remaining:
                self._parts.mounter.unmount(volume.mountpoint)
        log.info("volume unmounted", volume=name, id=mount_id[:_SHOWN_ID_LENGTH], references=len(remaining))

    def get(self, name: str) -> Volume:
        """The volume of this name, from memory.

        Raises:
            VolumeNotFound: there is none. The engine takes any error here for this one.
        """
        volume = self._find(name)
        if volume is None:
            raise VolumeNotFound(f"there is no volume {quoted(name)}")
        return volume

    def list(self) -> list[Volume]:
        """Every volume by name, from memory."""
        with self._registry:
            volumes = [*self._volumes.values()]
        return sorted(volumes, key=lambda volume: volume.name)

    def _find(self, name: str) -> Volume | None:
        with self._registry:
            return self._volumes.get(name)

    def _put(self, volume: Volume) -> None:
        with self._registry:
            self._volumes[volume.name] = volume

    def _mountpoint(self, name: str) -> str:
        return mountpoint(self._parts.root, name)

    def _ensure_mounted(self, volume: Volume) -> None:
        mounter = self._parts.mounter
        if mounter.is_mounted(volume.mountpoint):
            if volume.references:
                return
            mounter.unmount(volume.mountpoint)  # left by an unmount that failed: never mount on top of it
        with self._parts.sources.opened(volume.options) as source_fd:
            mounter.mount(source_fd, volume.mountpoint, read_only=volume.options.read_only)

    def _refuse_held(self, volume: Volume) -> None:
        pids = self._parts.holders(volume.mountpoint, volume.options.host_path)
        shown = ", ".join(sorted(mount_id[:_SHOWN_ID_LENGTH] for mount_id in volume.references))
        if pids:
            log.info("removal refused", volume=volume.name, references=shown, processes=pids)
            raise VolumeInUse(f"remove {volume.name}: volume is in use - [{shown}]")
        log.warning("references dropped", volume=volume.name, references=shown, reason="no process holds them")

    def _definition_errors(self) -> AbstractContextManager[None]:
        return state_errors("the definitions")

    def _defined(self, definition: Definition) -> Volume:
        options = volume_options.restore(definition.options)
        if isinstance(options, UnusableOptions):
            log.error("volume is not usable", volume=definition.name, reason=options.problem)
        return Volume(definition.name, options, definition.created, self._mountpoint(definition.name))

    def _recovered(self) -> dict[str, Volume]:
        with self._definition_errors():
            definitions = self._parts.definitions.load()
        volumes = [self._defined(definition) for definition in definitions]
        references = recover(
            os.path.dirname(self._mountpoint("any")),
            {volume.name: volume.mountpoint for volume in volumes},
            self._parts.references,
            self._parts.mounter,
            self._parts.boot_id,
        )
        return {volume.name: replace(volume, references=references.get(volume.name, {})) for volume in volumes}


def _refuse_difference(existing: Volume, options: VolumeOptions) -> None:
    before, after = existing.options.effective, options.effective
    keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    if keys:
        raise VolumeConflict(
            f"volume {existing.name} exists with other options: it differs in {', '.join(keys)};"
            " remove it first, or take another name"
        )
