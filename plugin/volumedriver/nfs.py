"""NFS mounts from the driver's side: what a worker is asked to do, and what is learnt of the server by that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from volumedriver import mountcalls, network
from volumedriver.errors import DriverError, MountFailed, NfsUnavailable, shown
from volumedriver.nfs_failures import (
    STEPS_OF_SERVER,
    Facts,
    addresses_in,
    explained,
    no_way,
    sentence,
    server_text,
    tells_of_death,
    tells_of_life,
    too_late,
    ways_to,
)
from volumedriver.nfs_servers import LOOK_S, Refused, Servers
from volumedriver.options import NfsOptions
from volumedriver.workers import NoAnswer, NoWorker, Workers

log = structlog.get_logger()

TIMEOUT_S = 20
PROBE_TIMEOUT_S = 5.0

_PATIENCE_S = 0.5  # with what is done already and only not yet acknowledged
_SHORTEST_S = 1.0
_STEPS_OF_KERNEL = frozenset(("mount", "walk"))


@dataclass(frozen=True, slots=True)
class NfsSource:
    """An export to mount. `networks` are those that the server's address must lie in, `prefix` is the directory of
    the server beneath which it must turn out to be; None for any.
    """

    options: NfsOptions
    networks: list[str] | None
    deadline: float | None = None  # of time.monotonic(), by which the call that wants it must have its answer
    prefix: str | None = None


class NfsMounts:
    """Mounts, detaches and probes in workers, and tells what it meets to `servers`, which remember it.

    Args:
        timeout_s: the longest that one mount may take.
    """

    def __init__(self, workers: Workers, timeout_s: float = TIMEOUT_S, servers: Servers | None = None) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._servers = servers or Servers()

    def mount(self, source: NfsSource, target_fd: int, *, read_only: bool) -> None:
        """Mount on the directory behind `target_fd`.

        Raises:
            DriverError: with the step that failed. Where the time was over, the mount may be there nonetheless.
        """
        now = time.monotonic()
        deadline = now + self._timeout_s
        if source.deadline is not None:
            deadline = max(min(deadline, source.deadline), now + _SHORTEST_S)
        while True:
            self._look(source)
            with self._turn(source, deadline):
                try:
                    self._mount(source, target_fd, deadline, read_only=read_only)
                    return
                except NfsUnavailable:
                    if not self._servers.is_awaited(source, deadline):
                        raise

    def probe(self, source: NfsSource) -> None:
        """See whether the server of `source` answers: of one that is in doubt, all that a mount asks."""
        began = time.monotonic()
        try:
            facts = self._probed(source, PROBE_TIMEOUT_S, is_whole=self._servers.is_doubtful(source))
        except NoAnswer as silence:
            if silence.step.get("step") in STEPS_OF_SERVER:
                self._servers.missed(source, too_late(source.options.place, silence.step, PROBE_TIMEOUT_S), began)
        except NoWorker as error:
            log.warning("a server could not be probed", reason=error.strerror or str(error))
        else:
            self._learn(source, facts, began)
            if "took_s" in facts:
                self._measure(source, facts)

    def give_up(self) -> None:
        """Have all that waits for servers fail, and nothing more begin, but for what takes mounts off."""
        self._servers.close()
        self._workers.give_up()

    def _look(self, source: NfsSource) -> None:
        """A server that is thought to be dead may just have been mended: the first who wants it looks, for all."""
        if not self._servers.begin_look(source):
            return
        began = time.monotonic()
        try:
            self._learn(source, self._probed(source, LOOK_S, is_whole=True), began)
        except NoAnswer as silence:
            if "call" in silence.step:  # it answers, and may be far away: a probe has more time
                self._servers.hurry(source)
        except NoWorker as error:
            log.warning("a server could not be looked at", reason=error.strerror or str(error))
        finally:
            self._servers.looked(source)

    def _probed(self, source: NfsSource, timeout_s: float, *, is_whole: bool) -> Facts:
        request = {"do": "probe", "probe": _request(source, read_only=True), "is_whole": is_whole}
        return self._workers.run(request, timeout_s)

    def find_way(self, source: NfsSource) -> list[network.Path | None]:
        """The ways to where the server was found before, as far as that is known. If there is none, it is dead."""
        addresses = self._servers.addresses(source)
        ways = ways_to(addresses)
        if obstacle := no_way(server_text(source.options.place, addresses), ways):
            self._servers.failed(source, obstacle, time.monotonic())
        return ways

    def detach(self, mountpoint: str) -> None:
        """Take the top mount off `mountpoint`. What its server does not acknowledge is left to the worker."""
        self._left({"do": "detach", "mountpoint": mountpoint})

    def remove(self, mountpoint: str) -> None:
        """Remove an empty mountpoint, on which something may be mounted in other mount namespaces.

        Raises:
            OSError: it is still there.
        """
        self._left({"do": "remove", "mountpoint": mountpoint})
        self._servers.wake.set()  # perhaps nobody has its server mounted any more

    def _left(self, request: Facts) -> None:
        facts = self._workers.run_and_leave(request, _PATIENCE_S, self._timeout_s)
        if facts is None:
            log.warning("the server of a detached mount does not answer", mountpoint=request["mountpoint"])
        elif "failed" in facts:
            raise OSError(facts["errno"], facts["reason"])

    @contextlib.contextmanager
    def _turn(self, source: NfsSource, deadline: float) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._servers.turn(source, deadline))
            except Refused as refused:
                raise NfsUnavailable(sentence(source.options.place, str(refused))) from refused
            yield

    def _mount(self, source: NfsSource, target_fd: int, deadline: float, *, read_only: bool) -> None:
        self._look_ahead(source)
        began, place = time.monotonic(), source.options.place
        timeout_s = max(deadline - began, _SHORTEST_S)
        request = {"do": "mount", "mount": _request(source, read_only=read_only)}
        try:
            facts = self._workers.run(request, timeout_s, [target_fd])
        except NoAnswer as silence:
            reason, step = too_late(place, silence.step, timeout_s), silence.step.get("step")
            if step in _STEPS_OF_KERNEL:  # perhaps not the server's fault, but its disk's, or another server's
                self._servers.suspect(source, reason)
            elif step in STEPS_OF_SERVER:
                self._servers.failed(source, reason, began, addresses_in(silence.step))
            raise NfsUnavailable(sentence(place, reason)) from silence
        except NoWorker as error:
            raise MountFailed(f"cannot mount {shown(place.text)}: {error.strerror or error}") from error
        failure = self._learn(source, facts, began)
        if failure is not None:
            log.info("nfs mount failed", nfs_path=place.text, **facts)
            raise type(failure)(sentence(place, str(failure)))
        log.info("nfs mounted", nfs_path=place.text, version=facts["version"], address=facts["address"])

    def _look_ahead(self, source: NfsSource) -> None:
        """That there is no way to a server the kernel tells at once, and who connects learns it late."""
        if self._servers.has_answered(source) or not network.is_ready():
            return
        addresses = self._servers.addresses(source)
        if obstacle := no_way(server_text(source.options.place, addresses), ways_to(addresses)):
            self._servers.failed(source, obstacle, time.monotonic())
            raise NfsUnavailable(sentence(source.options.place, obstacle))

    def _learn(self, source: NfsSource, facts: Facts, began: float) -> DriverError | None:
        """Remember what a mount or probe has met; returns the failure, in a clause."""
        if "failed" not in facts:
            self._servers.answered(source, addresses_in(facts))
            return None
        failure = explained(source.options, facts)
        if tells_of_death(facts):
            self._servers.failed(source, str(failure), began, addresses_in(facts))
        elif tells_of_life(facts):
            self._servers.answered(source, addresses_in(facts))
        return failure

    def _measure(self, source: NfsSource, facts: Facts) -> None:
        round_trip_ms = retransmits = None
        with contextlib.suppress(OSError):  # a kernel without INET_DIAG
            if connections := network.connections(addresses_in(facts), facts["port"]):
                round_trip_ms, retransmits = connections
        self._servers.measured(source, facts["took_s"] * 1000, round_trip_ms, retransmits)


def _request(source: NfsSource, *, read_only: bool) -> dict[str, Any]:
    options, given = source.options, source.options.mount_options
    creation = options.creation
    return {
        "server": options.place.server,
        "path": options.place.path,
        "options": given.parameters,
        "versions": given.versions,
        "proto": given.value("proto"),
        "port": given.number("port"),
        "mountproto": given.value("mountproto"),
        "mountport": given.number("mountport"),
        "attributes": given.attributes | (mountcalls.RDONLY if read_only else 0),
        "networks": source.networks,
        "prefix": source.prefix,
        "creation": None if creation is None else (creation.mode, creation.uid, creation.gid),
    }
