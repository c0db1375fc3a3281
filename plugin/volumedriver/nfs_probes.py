"""Probes of NFS servers in the background, and looks at the network when it has changed.

One thread says what is due; a probe may hang for its five seconds, so each has a thread of its own meanwhile.
Nothing runs, and nothing is loaded for it, before an NFS volume is in use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable

import structlog

from volumedriver import network
from volumedriver.nfs import NfsMounts, NfsSource
from volumedriver.nfs_servers import Servers, Service

log = structlog.get_logger()

_MOST_AT_ONCE = 16
_QUIET_S = 1.0  # the first mount does not share the processor with what is loaded to watch the network
_SETTLE_S = 0.2  # an event of the network seldom comes alone


class Prober:
    """Probes what `servers` say is due, until closed.

    Args:
        mounted: tells what is mounted: an NFS source for each such volume.
    """

    def __init__(self, servers: Servers, mounts: NfsMounts, mounted: Callable[[], Iterable[NfsSource]]) -> None:
        self._servers = servers
        self._mounts = mounts
        self._mounted = mounted
        self._ways: dict[Service, list[network.Path | None]] = {}
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._is_closed = threading.Event()
        self._has_network_changed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nfs-probes", daemon=True)

    def start(self) -> None:
        self._servers.begin_probing()
        self._thread.start()

    def close(self, timeout_s: float = 5) -> None:
        """End. A probe that is under way ends by itself."""
        self._is_closed.set()
        self._servers.wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            is_watching = False
            while not self._is_closed.is_set():
                try:
                    pause_s = self._look()
                    if pause_s is not None and not is_watching and not self._is_closed.wait(_QUIET_S):
                        stack.callback(network.Watch(self._note_change).close)
                        is_watching = True
                except Exception:
                    log.exception("probing failed")
                    pause_s = 1.0
                self._servers.wake.wait(pause_s)

    def _note_change(self) -> None:
        self._has_network_changed.set()
        self._servers.wake.set()

    def _look(self) -> float | None:
        """Begin what is due; returns how long there is nothing to do, None for until somebody mounts."""
        self._servers.wake.clear()
        self._servers.use(self._mounted())
        if self._has_network_changed.is_set():
            self._is_closed.wait(_SETTLE_S)
            self._has_network_changed.clear()
            self._find_ways()
        for source in self._servers.due():
            self._room.acquire()
            threading.Thread(target=self._probe, args=[source], name="nfs-probe", daemon=True).start()
        return self._servers.pause_s()

    def _probe(self, source: NfsSource) -> None:
        try:
            self._mounts.probe(source)
        except Exception:
            log.exception("a probe failed")
        finally:
            self._room.release()
            self._servers.probed(source)

    def _find_ways(self) -> None:
        """Probe each server to which the way is another now, or which has none any more."""
        before, self._ways = self._ways, {}
        for source in self._servers.known():
            service, ways = Service.of(source.options), self._mounts.find_way(source)
            self._ways[service] = ways
            if ways != before.get(service):
                self._servers.hurry(source)
