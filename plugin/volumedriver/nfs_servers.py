"""What is known of each NFS server in use, from memory; and who may wait for one that does not answer.

A mount from a dead server takes a thread and a process until its deadline. So servers are remembered, each with a
*breaker*. A mount that finds its server dead or silent opens it, and while it is open the next ones are refused
at once; the probes of `nfs_probes` close it as soon as the server answers. And so that even a herd that comes
before anybody knows does not take all the threads there are, of one server only so many mounts run at a time, so
many wait for their turn, and the rest is refused.

Nothing here talks to a server. What mounts and probes have met they tell by `answered`, `failed` and `missed`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import structlog

from storage.definitions import utc_now
from volumedriver.health import ServerHealth, State
from volumedriver.options import NfsOptions
from volumedriver.rpc import NFS_PORT

if TYPE_CHECKING:
    from volumedriver.nfs import NfsSource

log = structlog.get_logger()

BOOT_S = 300.0
PROBE_INTERVAL_S = 30.0
MOST_DOUBTFUL = 512

_AT_ONCE = 16  # mounts of one server; more at once are not faster
_MOST_PER_SERVER = 128
_WELL_S = 60.0  # for how long a server that has answered is taken to be well
_LONGEST_PAUSE_S = 30.0  # between probes of a server that does not answer
_ASKED_PAUSE_S = 2.0  # the same while somebody wants to mount
_ASKED_S = 30.0  # for how long somebody who was refused is thought to want to
LOOK_S = 0.3  # which a server that is thought to be dead is given before a mount is refused
_LOOK_ENDS_S = 0.1
_FRESH_S = 0.2  # what a look has found serves all who come within this time
_FORGET_S = 600.0
_MISSES = 2  # probes in a row that are not answered in time, until the server counts as silent
_SLOW_MS = 1000.0
_SLOW_RETRANSMITS = 5  # since the last look


class Refused(Exception):
    """A mount may not begin now. The text is a clause that says why."""


class Service(NamedTuple):
    """A server as far as it makes a difference to whether it answers: the NFS of one may be dead on one port, or
    for version 3, and not for the others; and where its mount service is thought to be may be wrong.
    """

    server: str
    port: int | None
    is_v3: bool
    proto: str | None
    mountport: int | None = None
    mountproto: str | None = None

    @classmethod
    def of(cls, options: NfsOptions) -> Service:
        given = options.mount_options
        is_v3, port, proto = given.versions == ("3",), given.number("port"), given.value("proto")
        return cls(
            options.place.server,
            port or (None if is_v3 else NFS_PORT),
            is_v3,
            None if proto == "tcp" else proto,
            given.number("mountport"),
            given.value("mountproto"),
        )

    @property
    def text(self) -> str:
        """The server as written, and what of it is meant if that is not the usual."""
        named = self.server
        if self.port != (None if self.is_v3 else NFS_PORT):
            named = f"[{named}]:{self.port}" if ":" in named else f"{named}:{self.port}"
        mount_service = [
            f"{name}={value}" for name, value in self._asdict().items() if name[:5] == "mount" and value
        ]
        apart = [word for word in ("NFSv3" if self.is_v3 else None, self.proto, *mount_service) if word]
        return f"{named} ({', '.join(apart)})" if apart else named


@dataclass(slots=True)
class _Record:
    """What is known of a service. Times are of the clock of `Servers`."""

    source: NfsSource  # whose mount or volume it was met by
    changed: threading.Condition
    addresses: tuple[str, ...]
    since: datetime = field(default_factory=utc_now)
    state: State = State.UNKNOWN
    reason: str = ""
    is_open: bool = False
    is_mounted: bool = False
    asked_at: float = -math.inf
    answered_at: float = -math.inf
    probed_at: float = -math.inf  # when the last probe ended
    probe_began: float | None = None  # of the one under way
    is_hurried: bool = False
    look_until: float = -math.inf  # of the look under way
    looked_at: float = -math.inf  # when the last look ended
    misses: int = 0
    failures: int = 0  # of probes in a row
    running: int = 0
    waiting: int = 0
    round_trip_ms: float | None = None
    retransmits: int | None = None

    @property
    def crowd(self) -> int:
        return self.running + self.waiting

    def become(self, state: State, reason: str = "") -> None:
        if state != self.state:
            self.since = utc_now()
        self.state, self.reason = state, reason

    def is_well(self, now: float) -> bool:
        return not self.is_open and now - self.answered_at < _WELL_S

    def pause_s(self, now: float) -> float:
        """Between two probes of a server that does not answer."""
        pause_s = min(2.0**self.failures, _LONGEST_PAUSE_S)
        return min(pause_s, _ASKED_PAUSE_S) if now - self.asked_at < _ASKED_S else pause_s

    def due(self, now: float, interval_s: float) -> float:
        """When it is to be probed; infinity: not at all."""
        if self.probe_began is not None:
            return math.inf
        if self.is_hurried:
            return now
        if self.is_open or self.misses:
            return self.probed_at + self.pause_s(now)
        return max(self.probed_at, self.answered_at) + interval_s if self.is_mounted else math.inf


class Servers:
    """All servers that a volume is mounted from, or somebody wanted to mount from lately. For any thread.

    Args:
        boot_s: for so long after the host's boot a mount waits for a server that is not there yet.
        interval_s: between probes of a server that volumes are mounted from.
        clock: seconds, going forward; `uptime` is the host's, in seconds.

    Attributes:
        wake: is set when a probe may be due earlier than `pause_s` said.
    """

    def __init__(
        self,
        *,
        boot_s: float = BOOT_S,
        interval_s: float = PROBE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._boot_s = boot_s
        self._interval_s = interval_s
        self._clock = clock
        self._uptime = uptime
        self._lock = threading.Lock()
        self._records: dict[Service, _Record] = {}
        self._is_probing = False
        self._is_closed = False
        self.wake = threading.Event()

    def begin_probing(self) -> None:
        """From now on there is somebody who probes. A breaker that nobody closes must not open."""
        self._is_probing = True

    def close(self) -> None:
        """Refuse all who wait for their turn, and who comes."""
        with self._lock:
            self._is_closed = True
            for record in self._records.values():
                record.changed.notify_all()

    # Mounts

    @contextlib.contextmanager
    def turn(self, source: NfsSource, deadline: float) -> Iterator[None]:
        """Wait for the turn of a mount, which is the body's.

        Args:
            deadline: of the clock; how long to wait at most.

        Raises:
            Refused: the server is known to be dead, or too many wait for it.
        """
        record = self._entered(source, deadline)
        try:
            yield
        finally:
            with self._lock:
                record.running -= 1
                record.changed.notify()

    def begin_look(self, source: NfsSource) -> bool:
        """Whether the caller is to ask the server now, for all who want to mount from it: it was found dead, which
        is a while ago. A look is ended by `looked`.
        """
        with self._lock:
            record, now = self._records.get(Service.of(source.options)), self._clock()
            if record is None or not record.is_open or self._is_booting():
                return False
            if now < record.look_until or now - record.looked_at < _FRESH_S:
                return False
            record.look_until, record.asked_at = now + LOOK_S + _LOOK_ENDS_S, now
            return True

    def looked(self, source: NfsSource) -> None:
        """The look has ended, whatever it met."""
        with self._lock:
            record = self._record(source)
            record.look_until, record.looked_at = -math.inf, self._clock()
            record.changed.notify_all()

    def is_doubtful(self, source: NfsSource) -> bool:
        """Whether the server is thought to be dead, or may be."""
        with self._lock:
            record = self._record(source)
            return record.is_open or record.misses > 0

    def is_awaited(self, source: NfsSource, deadline: float) -> bool:
        """Whether a mount that has found its server dead waits for it: soon after boot, while there is time."""
        with self._lock:
            is_open = self._record(source).is_open
        return is_open and self._is_booting() and self._clock() < deadline

    def has_answered(self, source: NfsSource) -> bool:
        """Whether the server has answered, and nothing was heard since of its being dead."""
        with self._lock:
            return self._record(source).state in {State.HEALTHY, State.SLOW}

    def addresses(self, source: NfsSource) -> tuple[str, ...]:
        """Where the server was when it was last looked for, if it was."""
        with self._lock:
            return self._record(source).addresses

    # What was met

    def answered(self, source: NfsSource, addresses: Sequence[str] = ()) -> None:
        """The server has answered, be it with a refusal."""
        with self._lock:
            record = self._record(source)
            record.addresses = tuple(addresses) or record.addresses
            record.answered_at = self._clock()
            record.misses = record.failures = 0
            if record.is_open:
                log.info("nfs server answers again", server=Service.of(source.options).text)
                record.is_open = False
                record.changed.notify_all()
            if record.state is not State.SLOW:
                record.become(State.HEALTHY)

    def failed(self, source: NfsSource, reason: str, began: float, addresses: Sequence[str] = ()) -> None:
        """The server was found dead or silent by what began at `began`; who was answered since knows better."""
        with self._lock:
            record = self._record(source)
            record.addresses = tuple(addresses) or record.addresses
            if record.answered_at <= began:
                self._open(record, reason)

    def suspect(self, source: NfsSource, reason: str) -> None:
        """A mount hung after the server had answered: it is asked now, and is dead if it does not answer that."""
        with self._lock:
            record = self._record(source)
            if not record.is_open:
                record.misses = _MISSES - 1
                record.become(State.SLOW, reason)
            record.is_hurried = True
        self.wake.set()

    def missed(self, source: NfsSource, reason: str, began: float) -> None:
        """A probe was not answered in its time, which is shorter than that of a mount: once may be chance."""
        with self._lock:
            record = self._record(source)
            record.misses += 1
            if record.answered_at > began:
                return
            if record.is_open or record.misses >= _MISSES:
                self._open(record, reason)
            else:
                record.become(State.SLOW, reason)

    def measured(
        self, source: NfsSource, probe_ms: float, round_trip_ms: float | None, retransmits: int | None
    ) -> None:
        """How long a probe took that was just answered, and how the kernel's connections with the server do."""
        with self._lock:
            record = self._record(source)
            again = 0 if retransmits is None or record.retransmits is None else retransmits - record.retransmits
            record.round_trip_ms = probe_ms if round_trip_ms is None else round_trip_ms
            record.retransmits = retransmits
            if record.is_open:
                return
            if probe_ms > _SLOW_MS:
                record.become(
                    State.SLOW, f"it took {probe_ms / 1000:.1f} s to answer a request that asks for nothing"
                )
            elif record.round_trip_ms > _SLOW_MS:
                record.become(State.SLOW, f"the round trip to it takes {record.round_trip_ms / 1000:.1f} s")
            elif again >= _SLOW_RETRANSMITS:
                record.become(State.SLOW, f"{again} segments had to be sent to it again since the last look")
            else:
                record.become(State.HEALTHY)

    # Probes

    def use(self, mounted: Iterable[NfsSource]) -> None:
        """These are mounted, and no others. Forgets servers that are not, and that nobody has asked for lately."""
        sources = {Service.of(source.options): source for source in mounted}
        with self._lock:
            for source in sources.values():
                self._record(source)
            now = self._clock()
            for service, record in [*self._records.items()]:
                was_mounted, record.is_mounted = record.is_mounted, service in sources
                is_old = was_mounted or now - record.answered_at >= self._interval_s
                if not record.is_mounted and not record.is_open and not record.crowd and is_old:
                    record.become(State.UNKNOWN)  # nobody looks any more
                is_idle = not record.crowd and record.probe_began is None
                if is_idle and not record.is_mounted and now - record.asked_at > _FORGET_S:
                    del self._records[service]

    def due(self) -> list[NfsSource]:
        """The servers that are to be probed now. Each probe is ended by `probed`."""
        with self._lock:
            now = self._clock()
            due = [record for record in self._records.values() if record.due(now, self._interval_s) <= now]
            for record in due:
                record.probe_began, record.is_hurried = now, False
            return [record.source for record in due]

    def probed(self, source: NfsSource) -> None:
        """The probe has ended, whatever it met."""
        with self._lock:
            record = self._record(source)
            record.probe_began, record.probed_at = None, self._clock()
            if record.is_open or record.misses:
                record.failures += 1
        self.wake.set()

    def pause_s(self) -> float | None:
        """How long nothing is due; None while no server is known."""
        with self._lock:
            now = self._clock()
            dues = [record.due(now, self._interval_s) for record in self._records.values()]
        return max(min(*dues, now + self._interval_s) - now, 0) if dues else None

    def known(self) -> list[NfsSource]:
        """A source of each server that is known."""
        with self._lock:
            return [record.source for record in self._records.values()]

    def hurry(self, source: NfsSource) -> None:
        """Have the server probed now."""
        with self._lock:
            self._record(source).is_hurried = True
        self.wake.set()

    # What is told

    def report(self) -> list[ServerHealth]:
        """What is known of each server, by name."""
        with self._lock:
            told = [_told(service, record) for service, record in self._records.items()]
        return sorted(told)

    def health(self, options: NfsOptions) -> ServerHealth | None:
        """What is known of the server of a volume; None: nothing at all."""
        service = Service.of(options)
        with self._lock:
            record = self._records.get(service)
            return _told(service, record) if record is not None else None

    # All that follows needs the lock, but for `_entered`

    def _entered(self, source: NfsSource, deadline: float) -> _Record:
        with self._lock:
            record, now = self._record(source), self._clock()
            record.source, record.asked_at = source, now
            self._refuse_crowd(record, now)
            is_booting = self._is_booting()
            record.waiting += 1
            try:
                while (until := self._obstacle(record, deadline, is_booting=is_booting)) is not None:
                    record.changed.wait(until - self._clock())
                record.running += 1
            finally:
                record.waiting -= 1
                record.changed.notify()  # perhaps it was this one who was told that there is room
            return record

    def _obstacle(self, record: _Record, deadline: float, *, is_booting: bool) -> float | None:
        """Until when to wait at most before the mount may begin; None: it may.

        Raises:
            Refused: the wait is over.
        """
        now = self._clock()
        if self._is_closed:
            raise Refused("the driver is ending")
        if record.is_open:
            until = deadline if is_booting else record.look_until
            if now >= until:
                raise Refused(_refusal(record, now))
            return until
        if record.running < _AT_ONCE:
            return None
        if now >= deadline:
            raise Refused(
                f"{record.running} other mounts of {record.source.options.place.server} were under way for all the"
                " time that this one had: the server is overloaded, or hangs"
            )
        return deadline

    def _refuse_crowd(self, record: _Record, now: float) -> None:
        if record.crowd >= _MOST_PER_SERVER:
            server = record.source.options.place.server
            raise Refused(f"{record.crowd} other mounts of {server} wait already: try again when they have ended")
        doubtful = sum(other.crowd for other in self._records.values() if not other.is_well(now))
        if doubtful >= MOST_DOUBTFUL and not record.is_well(now):
            raise Refused(f"{doubtful} mounts wait already for NFS servers that do not answer: try again later")

    def _open(self, record: _Record, reason: str) -> None:
        record.become(State.UNREACHABLE, reason)
        if self._is_probing and not record.is_open:
            log.warning("nfs server unreachable", server=Service.of(record.source.options).text, reason=reason)
            record.is_open, record.failures = True, 0
            record.probed_at = record.looked_at = self._clock()
            record.changed.notify_all()
            self.wake.set()

    def _record(self, source: NfsSource) -> _Record:
        service = Service.of(source.options)
        record = self._records.get(service)
        if record is None:
            record = _Record(source, threading.Condition(self._lock), _literal(service.server))
            self._records[service] = record
            self.wake.set()
        return record

    def _is_booting(self) -> bool:
        return self._uptime() < self._boot_s


def _told(service: Service, record: _Record) -> ServerHealth:
    return ServerHealth(
        service.text,
        record.state,
        record.since,
        record.reason,
        record.round_trip_ms,
        record.retransmits,
        record.is_open,
    )


def _refusal(record: _Record, now: float) -> str:
    return (
        f"{record.reason}; so it has been since {record.since:%Y-%m-%dT%H:%M:%SZ}, the server is asked again every"
        f" {record.pause_s(now):g} s, and a mount can be tried again when it answers"
    )


def _literal(server: str) -> tuple[str, ...]:
    """The server's address if that is what it is called."""
    try:
        ipaddress.ip_address(server)
    except ValueError:
        return ()
    return (server,)
