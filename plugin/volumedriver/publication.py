"""Seeing to it that a volume is mounted at its mountpoint, as it should be, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from volumedriver.errors import MountFailed
from volumedriver.holders import Hold, Holders, Wanted
from volumedriver.mounter import Mounter, Source
from volumedriver.options import NfsOptions
from volumedriver.sources import Sources
from volumedriver.volume import Shown, Volume

log = structlog.get_logger()

_MOST_ADOPTIONS = 3  # tried


class Publication:
    """Callers hold the lock of the volume."""

    def __init__(self, mounter: Mounter, sources: Sources, holders: Holders) -> None:
        self._mounter = mounter
        self._sources = sources
        self._holders = holders

    def ensure(self, volume: Volume, deadline: float | None = None, *, anew: bool = False) -> Shown:
        """See to it that the volume is mounted; `anew`: also where it is.

        Raises:
            DriverError: it is not mounted, and nothing else is.
        """
        layers = self._mounter.shown(volume.mountpoint)
        if volume.references and _are_ours(layers, volume.shown) and not anew:
            return layers[-1]
        if layers:  # left by an unmount that failed, or put there by somebody else: never mount on top of it
            reason = "it is stale" if anew else "this is not what was mounted here"
            log.warning("unmounting", volume=volume.name, mountpoint=volume.mountpoint, reason=reason)
            self._mounter.unmount(volume.mountpoint)
        with self._sources.opened(volume.options, deadline) as source:
            if not (source is None and self._adopted(volume)):
                self._mount(source, volume)
        layers = self._mounter.shown(volume.mountpoint)
        if not layers:
            raise MountFailed(f"{volume.mountpoint} was unmounted by somebody else at once")
        return layers[-1]

    def is_stale(self, volume: Volume) -> bool:
        """Whether the volume is mounted and that is of no use any more: its directory was removed on the host, or
        its server says that it does not know it.
        """
        if not volume.references or volume.shown is None:
            return False
        if isinstance(volume.options, NfsOptions):
            return bool(self._mounter.stale([Hold(0, volume.mountpoint, 0, volume.shown.device)]))
        return any(layer.is_removed for layer in self._mounter.shown(volume.mountpoint))

    def stale_holds(self, volume: Volume, *shown: Shown | None) -> list[Hold] | None:
        """Where processes have any of what is `shown` of the volume, if stale; None if its server says nothing."""
        wanted = {str(number): Wanted(each, None) for number, each in enumerate(shown) if each is not None}
        holds = [*dict.fromkeys(hold for found in self._holders.held(wanted).values() for hold in found)]
        if isinstance(volume.options, NfsOptions):
            return self._mounter.stale(holds)
        return [hold for hold in holds if hold.is_removed]

    def shown(self, volume: Volume) -> Shown | None:
        """What holders of the volume show. The host may have renamed the directory since it was mounted."""
        layers = self._mounter.shown(volume.mountpoint)
        return layers[-1] if _are_ours(layers, volume.shown) else volume.shown

    def _adopted(self, volume: Volume) -> bool:
        """Take a token from who holds it: by one that is made anew the sidecar knows only those who come later."""
        for hold in self._holds_of_token(volume):
            try:
                self._mount(hold, volume)
            except MountFailed as error:
                log.warning("token not taken from its holder", volume=volume.name, reason=str(error))
            else:
                log.info("token taken from its holder", volume=volume.name, pid=hold.pid)
                return True
        return False

    def _holds_of_token(self, volume: Volume) -> Iterator[Hold]:
        if not volume.references or volume.shown is None:
            return
        holds = self._holders.held({volume.name: Wanted(volume.shown, None)}).get(volume.name, ())
        device = volume.shown.device
        yield from sorted(holds, key=lambda hold: hold.device != device)[:_MOST_ADOPTIONS]

    def _mount(self, source: Source, volume: Volume) -> None:
        self._mounter.mount(source, volume.mountpoint, read_only=volume.options.read_only)


def _are_ours(layers: list[Shown], expected: Shown | None) -> bool:
    """Whether what is mounted is what was: nothing else, nothing more. Its directory may have been renamed."""
    if len({*layers}) != 1:
        return False
    return expected is None or expected.is_now(layers[0])
