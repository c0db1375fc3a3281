"""The sidecar's metrics in the text format of Prometheus. Imported when somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from brokervol import __version__
from brokervol.server import Load
from sidecar.metrics import BUCKETS_S, Counts

CONTENT_TYPE = CONTENT_TYPE_LATEST

Labels = TypeVar("Labels", bound=tuple[str, ...])

_LIMITS = [*map(str, map(float, BUCKETS_S)), "+Inf"]


def text(counts: Counts, load: Load, *, is_driver_up: bool) -> bytes:
    """What was counted, what there is to do, and whether the driver answers."""
    registry = CollectorRegistry()
    ProcessCollector(namespace="brokervol_sidecar", registry=registry)
    registry.register(_Known(counts, load, is_driver_up))
    return generate_latest(registry)


class _Known(Collector):
    def __init__(self, counts: Counts, load: Load, is_driver_up: bool) -> None:
        self._counts, self._load, self._is_driver_up = counts, load, is_driver_up

    def collect(self) -> Iterator[Metric]:
        info = InfoMetricFamily("brokervol_sidecar", "The sidecar that answers.")
        info.add_metric([], {"version": __version__})
        yield info
        up = GaugeMetricFamily("brokervol_driver_up", "Whether the driver answers the sidecar: 1 or 0.")
        up.add_metric([], self._is_driver_up)
        yield up
        yield from _requests(self._counts)
        yield from _load(self._load)
        yield from _files(self._counts)


def _requests(counts: Counts) -> Iterator[Metric]:
    yield _counter("calls", "Requests answered, by HTTP status.", ("call", "status"), counts.calls)
    errors = {(code,): count for code, count in counts.errors.items()}
    yield _counter("errors", "Requests that ended with a problem, by its code.", ("code",), errors)
    seconds = HistogramMetricFamily(
        "brokervol_sidecar_call_seconds", "How long requests took, to the end of the answer.", labels=["call"]
    )
    for call, (found, sum_s) in counts.durations.items():
        seconds.add_metric([call], [*zip(_LIMITS, accumulate(found), strict=True)], sum_s)
    yield seconds


def _load(load: Load) -> Iterator[Metric]:
    for name, meaning, count in (
        ("connections", "Connections that are open.", load.connections),
        ("requests_running", "Requests that are worked on.", load.running),
        ("requests_waiting", "Requests that wait for their turn.", load.waiting),
    ):
        family = GaugeMetricFamily(f"brokervol_sidecar_{name}", meaning)
        family.add_metric([], count)
        yield family
    refused = {(kind,): count for kind, count in load.refused.items()}
    yield _counter("refusals", "What was refused before it was looked at.", ("reason",), refused)


def _files(counts: Counts) -> Iterator[Metric]:
    labels = ("call", "backend")
    yield _counter("files", "Files that were worked on, by outcome.", (*labels, "outcome"), counts.files)
    yield _counter("bytes", "Bytes of files that came or went.", labels, counts.bytes)


def _counter(name: str, meaning: str, labels: tuple[str, ...], counts: Mapping[Labels, int]) -> Metric:
    family = CounterMetricFamily(f"brokervol_sidecar_{name}", meaning, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(values, count)
    return family
