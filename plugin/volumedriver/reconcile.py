"""What is looked at again and again while the driver runs, so that nothing stays wrong until the next start.

A pass compares memory with disk, kernel and the mount namespaces of running processes, and mends one volume at a
time; docs/recovery.md has the cases. It holds no lock while it looks, and takes none that is held: a volume with a
call under way is left for the next pass.

What may have to wait for an NFS server is done in a lane of that server, and a pass goes on without those that
take long: so all else is mended within one pass, however many servers are dead. What failed is put off, for longer
and longer, up to five minutes; a Mount does not wait for that.

References need most thought. The engine gives each back, unless it was killed. One that no mount namespace backs
for a while is dropped, then. But for as long as the engine that asked for it lives it is trusted nearly without
end: between Mount and the start of a container, while it copies an image's files into a new volume, and during
`docker cp` of a stopped container it works with the mount in its own namespace, where nobody sees that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import structlog

from volumedriver.driver import Driver, Parts
from volumedriver.errors import DriverError, VolumeBusy
from volumedriver.holders import Held, Wanted
from volumedriver.lanes import BackOff, Lanes
from volumedriver.nfs_servers import Service
from volumedriver.options import NfsOptions
from volumedriver.volume import Volume

log = structlog.get_logger()

GRACE_S = 120.0
LIVING_ENGINE_GRACE_S = 24 * 3600.0  # only an Unmount that got lost leaves such a reference behind
_NOTICE_S = 1.0
_PATIENCE_S = 2.0  # with lanes; a server that lives needs less
_FIRST_DELAY_S, _LONGEST_DELAY_S = 60.0, 300.0


class _Reference(NamedTuple):
    volume: str
    mount_id: str
    times: int


class _Doubt(NamedTuple):
    """What time is counted for. A further Mount with the same ID, and the end of the engine, begin it anew."""

    reference: _Reference
    engine_lives: bool


class Reconciler:
    """Compares and mends. `step` is what a timer calls; calls must not overlap.

    Args:
        grace_s: for how long a reference of an engine that is gone is kept although nobody has the volume.
        clock: seconds, going forward whatever happens to the time of day.
    """

    def __init__(
        self,
        driver: Driver,
        parts: Parts,
        *,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._references = parts.references
        self._mounter = parts.mounter
        self._holders = parts.holders
        self._grace_s = grace_s
        self._clock = clock
        self._is_alive = parts.is_alive
        self._unbacked_since: dict[_Doubt, float] = {}
        self._lanes = Lanes()
        self._back_off = BackOff(clock, _FIRST_DELAY_S, _LONGEST_DELAY_S)
        self._ends = False

    def notice(self) -> None:
        """Learn of volumes that were imported, and of state that somebody has removed or damaged. Cheap."""
        with suppress(VolumeBusy):
            self._driver.learn()
        self._driver.remember()

    def step(self) -> None:
        """One pass."""
        self._driver.finish()
        self._repair()
        held_by = {volume.name: volume for volume in self._driver.list() if volume.references}
        backed = self._holders.held(
            {
                name: Wanted(volume.shown, volume.options.host_path)
                for name, volume in held_by.items()
                if volume.shown is not None
            }
        )
        self._drop_unbacked(held_by, backed)
        self._look_for_stale(held_by, backed)

    def end(self, timeout_s: float) -> None:
        """Begin nothing more in the lanes, and wait for what they do."""
        self._ends = True
        self._lanes.wait(timeout_s)

    def _repair(self) -> None:
        volumes = self._driver.list()
        directory = volumes[0].mountpoint.rpartition("/")[0] if volumes else ""
        mounted = self._mounter.mountpoints(directory)
        recorded = self._references.load()
        remote = {}
        for volume in volumes:
            shown = {*mounted.get(volume.mountpoint, ())}
            expected = {volume.shown} if volume.references else set()
            if shown == expected and recorded.get(volume.name, {}) == volume.references:
                continue
            if server := _server(volume):
                remote[volume.name] = server
            else:
                _survive(self._driver.repair, volume.name)
        for server, names in _by_server(self._back_off.due(remote), remote).items():
            self._lanes.start(server, partial(self._repair_remote, names))
        self._lanes.wait(_PATIENCE_S)

    def _repair_remote(self, names: Sequence[str]) -> None:
        for name in names:
            if self._ends:
                return
            try:
                self._driver.repair(name)
                self._back_off.succeeded(name)
            except VolumeBusy:
                log.debug("volume is busy", volume=name)
            except DriverError as error:
                again_in_s = self._back_off.failed(name)
                log.warning("volume is not mended", volume=name, reason=str(error), again_in_s=again_in_s)

    def _look_for_stale(self, held_by: Mapping[str, Volume], backed: Held) -> None:
        """Take down who has what is no more; that nobody has it any more, too."""
        remote = {}
        for name, volume in held_by.items():
            if not (name in backed or volume.stale):
                continue
            if server := _server(volume):
                remote[name] = server
            elif (removed := [hold for hold in backed.get(name, ()) if hold.is_removed]) or volume.stale:
                _survive(self._driver.note_stale, name, removed)
        for server, names in _by_server(remote, remote).items():
            holds = {name: backed.get(name, ()) for name in names}
            self._lanes.start(server, partial(self._look_at, holds))
        self._lanes.wait(_PATIENCE_S)

    def _look_at(self, holds: Held) -> None:
        stale = self._mounter.stale([hold for found in holds.values() for hold in found])
        if stale is not None:
            for name, found in holds.items():
                _survive(self._driver.note_stale, name, [hold for hold in found if hold in stale])

    def _drop_unbacked(self, held_by: Mapping[str, Volume], backed: Held) -> None:
        engines = self._references.engines()
        now = self._clock()
        before, self._unbacked_since = self._unbacked_since, {}
        for reference in _references(volume for name, volume in held_by.items() if name not in backed):
            engine = engines.get(reference[:2])
            if engine is None:  # its namespaces cannot be seen from here, nor those of its containers
                continue
            doubt = _Doubt(reference, self._is_alive(engine))
            since = self._unbacked_since[doubt] = before.get(doubt, now)
            if now - since >= (LIVING_ENGINE_GRACE_S if doubt.engine_lives else self._grace_s):
                reason = f"no process has the volume for {now - since:.0f} s"
                _survive(self._driver.forget, *reference, reason)


def _server(volume: Volume) -> Service | None:
    """What the volume waits for when that is dead; None where it is this host."""
    return Service.of(volume.options) if isinstance(volume.options, NfsOptions) else None


def _by_server(names: Iterable[str], servers: Mapping[str, Service]) -> dict[Service, list[str]]:
    found: dict[Service, list[str]] = {}
    for name in names:
        found.setdefault(servers[name], []).append(name)
    return found


def _references(volumes: Iterable[Volume]) -> list[_Reference]:
    return [
        _Reference(volume.name, mount_id, count)
        for volume in volumes
        for mount_id, count in volume.references.items()
    ]


def _survive(action: Callable[..., None], name: str, *arguments: object) -> None:
    """One volume that cannot be mended must not keep others from it. It comes again with the next pass."""
    try:
        action(name, *arguments)
    except VolumeBusy:
        log.debug("volume is busy", volume=name)
    except DriverError as error:
        log.warning("volume is not mended", volume=name, reason=str(error))


class Timer:
    """Runs a reconciler in a thread of its own: at once, and then every `interval_s`, unless that is 0.

    What another process defines is noticed within a second, or when the pass that is going on has ended.
    """

    def __init__(self, reconciler: Reconciler, interval_s: float) -> None:
        self._reconciler = reconciler
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconcile", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5) -> None:
        """End after the volume at hand; one whose file system hangs is not waited for longer than `timeout_s`."""
        self._stopped.set()
        self._reconciler.end(timeout_s / 2)
        self._thread.join(timeout_s / 2)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            self._guard(self._reconciler.notice)
            if time.monotonic() >= due:
                self._guard(self._reconciler.step)
                due = time.monotonic() + self._interval_s if self._interval_s else float("inf")
            self._stopped.wait(_NOTICE_S)

    def _guard(self, action: Callable[[], None]) -> None:
        """Nothing that one pass meets may end the timer."""
        try:
            action()
        except DriverError as error:
            log.warning("reconciling failed", reason=str(error))
        except Exception:
            log.exception("reconciling failed")
