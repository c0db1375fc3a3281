"""Metrics in the text format of Prometheus: the only module that knows its client.

What happens is counted as it happens; what is, is asked for when somebody looks.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from brokervol import __version__
from volumedriver.health import ServerHealth, State
from volumedriver.status import BAD, Status, Told

CONTENT_TYPE = CONTENT_TYPE_LATEST

disable_created_metrics()  # type: ignore[no-untyped-call]  # when each series began: of no use

# From an answer out of memory to the longest that a call may take.
_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)


class Metrics:
    """Counts the calls of a driver, and tells that and its status."""

    def __init__(self, status: Status) -> None:
        self._registry = registry = CollectorRegistry()
        Info("brokervol_driver", "The driver that answers.", registry=registry).info({"version": __version__})
        self._under_way = Gauge(
            "brokervol_driver_calls_under_way", "Calls that are not answered yet.", ["call"], registry=registry
        )
        self._answered = Counter(
            "brokervol_driver_calls",
            "Calls answered, by HTTP status: 200 is done.",
            ["call", "status"],
            registry=registry,
        )
        self._durations = Histogram(
            "brokervol_driver_call_seconds",
            "How long calls took.",
            ["call"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._of: dict[str, tuple[Gauge, Histogram]] = {}  # to find a series by its labels takes a while
        ProcessCollector(registry=registry)
        registry.register(_Known(status))

    def expect(self, calls: Iterable[str]) -> None:
        """Have the series of these calls begin with zero: a rate cannot see what a series begins with."""
        for call in calls:
            self._answered.labels(call, "200")
            self._of[call] = self._under_way.labels(call), self._durations.labels(call)

    def began(self, call: str) -> None:
        """A call has come, one of those expected."""
        under_way, _ = self._of[call]
        under_way.inc()

    def ended(self, call: str, http_status: int, took_s: float) -> None:
        """It was answered."""
        under_way, durations = self._of[call]
        under_way.dec()
        durations.observe(took_s)
        self._answered.labels(call, str(http_status)).inc()

    def text(self) -> bytes:
        """All metrics, as `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Known(Collector):
    """What the driver knows at the moment of the scrape."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        told = self._status.told()
        yield from _volumes(told)
        yield from _servers(told.servers)
        workers = _gauge("nfs_workers", "Processes in which NFS is mounted and looked at.", "state")
        for state, count in self._status.workers().items():
            workers.add_metric([state], count)
        yield workers


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"brokervol_{name}", text, labels=labels)


def _volumes(told: Told) -> Iterator[Metric]:
    defined, mounted, references = Tally[str](), Tally[str](), Tally[str]()
    for volume in told.volumes:
        kind = volume.options.effective.get("type", "")
        defined[kind] += 1
        mounted[kind] += volume.is_mounted
        references[kind] += sum(volume.references.values())
    for name, text, tally in (
        ("volumes", "Volumes that are defined.", defined),
        ("volumes_mounted", "Volumes that are mounted.", mounted),
        ("references", "Mounts that the engine has asked for and not given back.", references),
    ):
        family = _gauge(name, text, "type")
        for kind, count in tally.items():
            family.add_metric([kind], count)
        yield family
    unhealthy = _gauge("volumes_unhealthy", "Volumes that do not work, by what is wrong.", "health")
    words = Tally(health.word for health in told.health.values())
    for word in BAD:
        unhealthy.add_metric([word], words[word])
    yield unhealthy


def _servers(servers: Iterable[ServerHealth]) -> Iterator[Metric]:
    state = _gauge("nfs_server_state", "1 for the state that the server is in, 0 for others.", "server", "state")
    since = _gauge("nfs_server_since_timestamp_seconds", "When it came to be in this state.", "server")
    refusing = _gauge("nfs_server_breaker_open", "Whether mounts are refused at once: 1 or 0.", "server")
    round_trip = _gauge("nfs_server_round_trip_seconds", "Of the kernel's connection or the last probe.", "server")
    retransmits = CounterMetricFamily(
        "brokervol_nfs_server_retransmits", "Segments that the kernel sent again.", labels=["server"]
    )
    for server in servers:
        for word in State:
            state.add_metric([server.server, word], server.state == word)
        since.add_metric([server.server], server.since.timestamp())
        refusing.add_metric([server.server], server.is_open)
        if server.round_trip_ms is not None:
            round_trip.add_metric([server.server], server.round_trip_ms / 1000)
        if server.retransmits is not None:
            retransmits.add_metric([server.server], server.retransmits)
    yield from (state, since, refusing, round_trip, retransmits)
