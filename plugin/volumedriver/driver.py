"""The verbs of the VolumeDriver protocol.

Get, List and Path are answered from memory: volumes are immutable records in one dictionary. What changes a
volume holds its lock by name, writes down what it is about to do, then does it, then records it, and alters memory
last; so a crash in between leaves a case that the next start knows (docs/recovery.md), and a failure leaves memory
as it was.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from storage.definitions import AlreadyDefined, Definition, DefinitionStore, mountpoint, utc_now
from volumedriver import options as volume_options
from volumedriver import stale
from volumedriver.engines import Engine, is_alive
from volumedriver.errors import (
    DriverError,
    StateDamaged,
    StateUnavailable,
    VolumeBusy,
    VolumeConflict,
    VolumeInUse,
    VolumeNotFound,
    quoted,
)
from volumedriver.holders import Hold, Holders, Wanted
from volumedriver.locks import NamedLocks
from volumedriver.mounter import Mounter
from volumedriver.options import UnusableOptions, VolumeOptions
from volumedriver.publication import Publication
from volumedriver.recovery import Scene, recover, settle_intents
from volumedriver.sources import Sources
from volumedriver.store import Intent, ReferenceStore, Verb, state_errors
from volumedriver.volume import Shown, Volume, check_mount_id, check_name

log = structlog.get_logger()

LOCK_TIMEOUT_S = 20.0  # below the 25 s that every call should end in
_MOUNT_S = 24.0  # the same for Mount, whose volume may have to be waited for first
_SHOWN_ID_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Parts:
    """What a driver is made of."""

    root: str
    definitions: DefinitionStore
    references: ReferenceStore
    mounter: Mounter
    sources: Sources
    holders: Holders
    boot_id: str
    lock_timeout_s: float = LOCK_TIMEOUT_S
    is_alive: Callable[[Engine], bool] = is_alive


class Driver:
    """All volumes of this host. Making one recovers what an earlier process has left.

    Raises:
        StateUnavailable: the state on disk cannot be used.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._locks = NamedLocks(parts.lock_timeout_s)
        self._registry = threading.Lock()
        self._defining = threading.Lock()  # definitions change on disk and in memory at once
        self._is_damaged = False
        self._publication = Publication(parts.mounter, parts.sources, parts.holders)
        self._unfinished: list[Definition] = []
        self._unsettled: set[str] = set()
        self._version = 0
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
            if self._find(name) is None:
                try:
                    self._define(Definition(name, options.effective, utc_now()))
                    return
                except AlreadyDefined:  # by another process, a moment ago
                    self._learn(name)
            _refuse_difference(self.get(name), options)

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
            self._put(replace(volume, references={}, stale=""))
            # What was before it is undone by nothing, and needs no intent.
            with self._defining, self._definition_errors():
                self._parts.definitions.remove(name)
                with self._registry:
                    del self._volumes[name]
        log.info("volume removed", volume=name)

    def mount(self, name: str, mount_id: str, engine: Engine | None = None) -> str:
        """Take one more reference for `mount_id` and see to it that the volume is mounted.

        Args:
            engine: who asks; None where that cannot be known.

        Returns:
            The mountpoint.
        """
        check_mount_id(mount_id)
        deadline = time.monotonic() + _MOUNT_S
        with self._locks.held(name):
            volume = self._without_former(self.get(name), mount_id, engine)
            count = volume.references.get(mount_id, 0)
            is_stale = self._publication.is_stale(volume)
            with (
                self._noting_stale(volume if is_stale else None),
                self._intended(name, Verb.MOUNT, mount_id=mount_id, count=count),
                self._published(volume, deadline, anew=is_stale) as shown,
            ):
                if shown != volume.shown:
                    self._parts.references.set_shown(name, shown)
                self._parts.references.set(name, mount_id, count + 1, engine)
                self._put(replace(volume, references={**volume.references, mount_id: count + 1}, shown=shown))
        log.info("volume mounted", volume=name, id=mount_id[:_SHOWN_ID_LENGTH])
        return volume.mountpoint

    def unmount(self, name: str, mount_id: str) -> None:
        """Give one reference of `mount_id` back; the last one of the volume unmounts it.

        A volume or an ID that is not known succeeds: it is what the caller wanted.
        """
        with self._locks.held(name):
            volume = self._find(name)
            if volume is not None and mount_id not in volume.references:
                mount_id = _former(mount_id)
            if volume is None or mount_id not in volume.references:
                log.info("nothing to unmount", volume=quoted(name), id=mount_id[:_SHOWN_ID_LENGTH])
                return
            left = self._release(volume, mount_id, volume.references[mount_id] - 1)
        log.info("volume unmounted", volume=name, id=mount_id[:_SHOWN_ID_LENGTH], references=left)

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

    # What `reconcile` does with one volume at a time. None of it waits for a volume that is busy.

    def repair(self, name: str) -> None:
        """Make the kernel and the disk agree with what is known of a volume: mounted if referenced, and only then.

        Raises:
            VolumeBusy: a call for it is under way.
            DriverError: it could not be done.
        """
        with self._locks.held(name, timeout_s=0):
            volume = self._find(name)
            if volume is None:
                return
            if not volume.references:
                self._parts.mounter.unmount(volume.mountpoint)
            elif (shown := self._publication.ensure(volume)) != volume.shown:
                self._parts.references.set_shown(name, shown)
                self._put(replace(volume, shown=shown))
            recorded = self._parts.references.load().get(name, {})
            for mount_id in {*recorded, *volume.references}:
                count = volume.references.get(mount_id, 0)
                if count != recorded.get(mount_id, 0):
                    self._parts.references.set(name, mount_id, count)

    def forget(self, name: str, mount_id: str, count: int, reason: str) -> None:
        """Drop the reference of an ID, if it still counts `count`: nobody will give it back.

        Raises:
            VolumeBusy: a call for the volume is under way.
            MountFailed: it was the last one, and the volume is still mounted.
        """
        with self._locks.held(name, timeout_s=0):
            volume = self._find(name)
            if volume is not None and volume.references.get(mount_id) == count:
                log.warning("reference dropped", volume=name, id=mount_id[:_SHOWN_ID_LENGTH], reason=reason)
                self._release(volume, mount_id, 0)

    def note_stale(self, name: str, holds: Sequence[Hold]) -> None:
        """Take down who has a stale mount of a volume, perhaps nobody any more.

        Raises:
            VolumeBusy: a call for the volume is under way.
        """
        with self._locks.held(name, timeout_s=0):
            volume = self._find(name)
            if volume is not None and volume.references:
                self._put(stale.noted(volume, holds))

    def learn(self) -> None:
        """Learn of the volumes that another process has defined since (`brokervol volumes import`).

        Definitions that somebody has removed or damaged are written again from memory.

        Raises:
            VolumeBusy: a call for one of them is under way.
            StateUnavailable: the definitions cannot be read, or not be written.
        """
        if not self._parts.definitions.is_there():
            self._is_damaged = True
        with contextlib.suppress(StateDamaged):
            self._learn_of_others()
        if self._is_damaged:
            self._write_definitions()
            self._learn_of_others()

    def _learn_of_others(self) -> None:
        definitions = self._parts.definitions
        with self._definition_errors():
            if not definitions.has_backup():
                with contextlib.suppress(OSError):  # a full disk is told to those who want to change something
                    definitions.agree_with_backup()
            version = definitions.version()
            if version == self._version:
                return
            names = {definition.name for definition in definitions.load()}
        for name in names:
            if self._find(name) is None:
                with self._locks.held(name, timeout_s=0):
                    self._learn(name)
        self._save_unless(names)
        self._version = version

    def remember(self) -> None:
        """Write references again, from memory, that somebody has removed or damaged.

        Raises:
            StateUnavailable: they cannot be written.
        """
        references = self._parts.references
        if references.is_lost():
            volumes = self.list()
            counts = {volume.name: volume.references for volume in volumes}
            shown = {volume.name: volume.shown for volume in volumes if volume.shown is not None}
            kept_as = references.write_anew(self._parts.boot_id, counts, shown)
            log.error("references written again", kept_as=kept_as, reason="what was on disk is damaged or gone")

    def finish(self) -> None:
        """Finish the Creates that an earlier process died in, or undo those that cannot be.

        What could not be settled is settled, before a start takes it for cut short.
        """
        for name in [*self._unsettled]:
            with contextlib.suppress(VolumeBusy), self._locks.held(name, timeout_s=0):
                self._settle(name)
        while self._unfinished:
            definition = self._unfinished[-1]
            try:
                with self._locks.held(definition.name, timeout_s=0):
                    self._finish(definition)
            except VolumeBusy:
                return
            except (DriverError, AlreadyDefined) as error:
                log.warning("create undone", volume=definition.name, reason=str(error))
            self._unfinished.pop()

    def _find(self, name: str) -> Volume | None:
        with self._registry:
            return self._volumes.get(name)

    def _put(self, volume: Volume) -> None:
        with self._registry:
            self._volumes[volume.name] = volume

    def _mountpoint(self, name: str) -> str:
        return mountpoint(self._parts.root, name)

    def _define(self, definition: Definition) -> None:
        volume = self._defined(definition)
        detail = {"options": definition.options, "created": definition.created.isoformat()}
        with (
            self._intended(volume.name, Verb.CREATE, **detail),
            self._parts.sources.opened(volume.options),
            self._defining,
            self._definition_errors(),
        ):
            self._parts.definitions.add([definition])
            self._put(volume)
        log.info("volume created", volume=volume.name, options=definition.options)

    def _write_definitions(self) -> None:
        with self._defining, self._definition_errors():
            kept_as = self._parts.definitions.write_anew(map(_definition, self.list()))
            self._is_damaged = False
        log.error("definitions written again", kept_as=kept_as, reason="what was on disk is damaged or gone")

    def _save_unless(self, names: Collection[str]) -> None:
        """Write the definitions that are in memory and not among `names`: only this driver ever removes any."""
        if all(volume.name in names for volume in self.list()):
            return
        with self._defining, self._definition_errors():
            there = {definition.name for definition in self._parts.definitions.load()}
            lost = [_definition(volume) for volume in self.list() if volume.name not in there]
            if lost:
                self._parts.definitions.save(*lost)
        for definition in lost:
            log.error("definition written again", volume=definition.name, reason="somebody has removed it")

    def _learn(self, name: str) -> None:
        """Take over the definition of a volume that is not known; its lock is held."""
        with self._definition_errors():
            definition = self._parts.definitions.find(name)
        if definition is not None and self._find(name) is None:
            self._put(self._defined(definition))
            log.info("volume found", volume=name, options=definition.options)

    def _finish(self, definition: Definition) -> None:
        name = definition.name
        if all(intent.volume != name for intent in self._parts.references.intents()):
            return  # a call has created it meanwhile, and perhaps another has removed it again
        if self._find(name) is None:
            self._define(definition)
        else:  # it had been done but for this
            self._parts.references.settle(name)

    @contextlib.contextmanager
    def _intended(self, name: str, verb: Verb, **detail: object) -> Iterator[None]:
        """If this process dies in the body, the next start knows what it was about."""
        self._parts.references.intend(Intent(name, verb, detail))
        try:
            yield
        finally:
            self._settle(name)

    def _settle(self, name: str) -> None:
        self._unsettled.add(name)
        with _tolerating_unwritten_state(name):
            self._parts.references.settle(name)
            self._unsettled.discard(name)

    @contextlib.contextmanager
    def _published(self, volume: Volume, deadline: float, *, anew: bool) -> Iterator[Shown]:
        """See to it that the volume is mounted. If the body fails, what nobody held before is unmounted again."""
        shown = self._publication.ensure(volume, deadline, anew=anew)
        try:
            yield shown
        except BaseException:
            if not volume.references:
                self._parts.mounter.unmount(volume.mountpoint)
            raise

    @contextlib.contextmanager
    def _noting_stale(self, volume: Volume | None) -> Iterator[None]:
        """Take down who has what was stale of `volume`, also if the body does not mount it anew."""
        was = self._publication.shown(volume) if volume is not None else None
        try:
            yield
        finally:
            if volume is not None:
                now = self.get(volume.name)
                if (holds := self._publication.stale_holds(now, was, now.shown)) is not None:
                    self._put(stale.noted(now, holds))

    def _without_former(self, volume: Volume, mount_id: str, engine: Engine | None) -> Volume:
        """Set apart what `mount_id` has from an engine that was killed: it may never give that back.

        An engine keeps the ID with the container. The next one asks with it for a container that is started again,
        and gives back what it asked for; or, with live-restore, what the former one did.
        """
        count = volume.references.get(mount_id, 0)
        before = self._parts.references.engine(volume.name, mount_id) if count else None
        if before is None or before == engine or self._parts.is_alive(before):
            return volume
        former = _former(mount_id)
        references = {**volume.references, former: volume.references.get(former, 0) + count}
        del references[mount_id]
        self._parts.references.set_apart(volume.name, mount_id, former)
        log.info("references set apart", volume=volume.name, id=mount_id[:_SHOWN_ID_LENGTH], engine=before.pid)
        self._put(volume := replace(volume, references=references))
        return volume

    def _release(self, volume: Volume, mount_id: str, count: int) -> int:
        """Leave `count` references to `mount_id`; returns how many IDs hold the volume then.

        State that cannot be written must not keep the volume mounted: `repair` writes it later.
        """
        remaining = {**volume.references, mount_id: count}
        if not count:
            del remaining[mount_id]
        with _tolerating_unwritten_state(volume.name):
            self._parts.references.set(volume.name, mount_id, count)
        self._put(replace(volume, references=remaining, stale=volume.stale if remaining else ""))
        if not remaining:
            self._parts.mounter.unmount(volume.mountpoint)
        return len(remaining)

    def _refuse_held(self, volume: Volume) -> None:
        shown = self._publication.shown(volume)
        wanted = {volume.name: Wanted(shown, volume.options.host_path)} if shown is not None else {}
        holds = self._parts.holders.held(wanted).get(volume.name, ())
        ids = ", ".join(sorted(mount_id[:_SHOWN_ID_LENGTH] for mount_id in volume.references))
        if holds:
            log.info("removal refused", volume=volume.name, references=ids, processes=[hold.pid for hold in holds])
            raise VolumeInUse(f"remove {volume.name}: volume is in use - [{ids}]")
        log.warning("references dropped", volume=volume.name, references=ids, reason="no process holds them")

    @contextlib.contextmanager
    def _definition_errors(self) -> Iterator[None]:
        try:
            with state_errors("the definitions"):
                yield
        except StateDamaged:
            self._is_damaged = True  # `learn` mends it
            raise

    def _defined(self, definition: Definition) -> Volume:
        options = volume_options.restore(definition.options)
        if isinstance(options, UnusableOptions):
            log.error("volume is not usable", volume=definition.name, reason=options.problem)
        return Volume(definition.name, options, definition.created, self._mountpoint(definition.name))

    def _recovered(self) -> dict[str, Volume]:
        with self._definition_errors():
            self._unfinished = settle_intents(self._parts.references)
            self._version = self._parts.definitions.version()
            definitions = self._parts.definitions.load()
        volumes = {definition.name: self._defined(definition) for definition in definitions}
        parts = self._parts
        directory = os.path.dirname(self._mountpoint("any"))
        scene = Scene(directory, parts.references, parts.mounter, parts.holders, parts.boot_id)
        for name, (references, shown) in recover(volumes, scene).items():
            volumes[name] = replace(volumes[name], references=references, shown=shown)
        return volumes


def _definition(volume: Volume) -> Definition:
    return Definition(volume.name, volume.options.effective, volume.created)


def _former(mount_id: str) -> str:
    return f"former {mount_id}"


@contextlib.contextmanager
def _tolerating_unwritten_state(name: str) -> Iterator[None]:
    try:
        yield
    except StateUnavailable as error:
        log.warning("state is not written", volume=name, reason=str(error))


def _refuse_difference(existing: Volume, options: VolumeOptions) -> None:
    keys = volume_options.differences(existing.options.effective, options.effective)
    if keys:
        raise VolumeConflict(
            f"volume {existing.name} exists with other options: it differs in {', '.join(keys)};"
            " remove it first, or take another name"
        )
