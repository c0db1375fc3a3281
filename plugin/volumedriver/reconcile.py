"""What is looked at again and again while the driver runs, so that nothing stays wrong until the next start.

A pass compares memory with disk, kernel and the mount namespaces of running processes, and mends one volume at a
time; docs/recovery.md has the cases. It holds no lock while it looks, and takes none that is held: a volume with a
call under way is left for the next pass.

References need most thought. The engine gives each back, unless it was killed. One that no mount namespace backs
for a while is dropped, then. But for as long as the engine that asked for it lives it is trusted nearly without
end: between Mount and the start of a container, while it copies an image's files into a new volume, and during
`docker cp` of a stopped container it works with the mount in its own namespace, where nobody sees that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import structlog

from volumedriver.driver import Driver, Parts
from volumedriver.engines import Engine, is_alive
from volumedriver.errors import DriverError, VolumeBusy
from volumedriver.holders import Wanted
from volumedriver.volume import Volume

log = structlog.get_logger()

GRACE_S = 120.0
LIVING_ENGINE_GRACE_S = 24 * 3600.0  # only an Unmount that got lost leaves such a reference behind
_NOTICE_S = 1.0


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
        is_alive: Callable[[Engine], bool] = is_alive,
    ) -> None:
        self._driver = driver
        self._references = parts.references
        self._mounter = parts.mounter
        self._holders = parts.holders
        self._grace_s = grace_s
        self._clock = clock
        self._is_alive = is_alive
        self._unbacked_since: dict[_Doubt, float] = {}

    def notice(self) -> None:
        """Learn of volumes that were imported. Cheap."""
        with suppress(VolumeBusy):
            self._driver.learn()

    def step(self) -> None:
        """One pass."""
        self._driver.finish()
        self._repair()
        self._drop_unbacked()

    def _repair(self) -> None:
        volumes = self._driver.list()
        directory = volumes[0].mountpoint.rpartition("/")[0] if volumes else ""
        mounted = self._mounter.mountpoints(directory)
        recorded = self._references.load()
        for volume in volumes:
            shown = {*mounted.get(volume.mountpoint, ())}
            expected = {volume.shown} if volume.references else set()
            if shown != expected or recorded.get(volume.name, {}) != volume.references:
                _survive(self._driver.repair, volume.name)

    def _drop_unbacked(self) -> None:
        engines = self._references.engines()
        held_by = {volume.name: volume for volume in self._driver.list() if volume.references}
        backed = self._holders.held(
            {
                name: Wanted(volume.shown, volume.options.host_path)
                for name, volume in held_by.items()
                if volume.shown is not None
            }
        )
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

    What another process defines is noticed within a second in any case.
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
        self._thread.join(timeout_s)

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
