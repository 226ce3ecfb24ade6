"""Prometheus metrics of one model's service, in a registry of its own, and those of several as one text.

It knows no HTTP and no engine; both tell it what happened. Invariant: no label takes values from clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from forecaster.quality import QUANTITIES, Figures

__all__ = ["NAMED", "Metrics", "Requests", "exposition"]

NAMED = "named_model"
"""Label of what belongs to a named model; what belongs to the one without a name lacks it."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SURPRISES = (1, 2, 3, 4, 6)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Requests:
    """What is counted of HTTP."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._request_count = Counter(
            "forecaster_requests", "HTTP requests", ("method", "route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "forecaster_request_seconds", "Time to answer", ("method", "route"), registry=registry, buckets=_SECONDS
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record one HTTP request."""
        key = (method, route, status)
        pair = self._requests.get(key)
        if pair is None:
            # Looking labels up costs more than counting, so the children are kept.
            pair = self._request_count.labels(method, route, str(status)), self._request_seconds.labels(method, route)
            self._requests[key] = pair
        pair[0].inc()
        pair[1].observe(seconds)


class Metrics(Requests):
    """Everything the service of one model counts."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self.observations = Counter(
            "forecaster_observations", "Observations by verdict", ("verdict",), registry=registry
        )
        self.surprising = Counter(
            "forecaster_surprising_observations",
            "Observations at least so far out in what was forecast for them: 2 is one in a hundred",
            ("surprise",),
            registry=registry,
        )
        self.quality = Counter(
            "forecaster_quality",
            "Sums of scores of past forecasts as their truth arrives: MAE is error / count, relative to seasonal naive "
            "error / naive_error, WQL 2/3 loss / size, coverage of the 80 % interval covered / count",
            ("quantity",),
            registry=registry,
        )
        self.refused_forecasts = Counter(
            "forecaster_refused_forecasts",
            "Observations of one stream that were taken without the forecast asked for with them",
            registry=registry,
        )
        self.filled = Counter("forecaster_filled_steps", "Missing steps filled in gaps", registry=registry)
        self.batch_size = Histogram(
            "forecaster_batch_streams", "Streams in a micro-batch", registry=registry, buckets=_SIZES
        )
        self.batch_seconds = Histogram(
            "forecaster_batch_seconds", "Time of a micro-batch", registry=registry, buckets=_SECONDS
        )
        self.part_seconds = Histogram(
            "forecaster_batch_part_seconds",
            "Time of a micro-batch's statements, fold, decoding and commit; the last two overlap",
            ("part",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.pending = Gauge("forecaster_pending", "Items waiting for the engine", registry=registry)
        self.event_readers = Gauge("forecaster_event_readers", "Clients that read events", registry=registry)
        self.resident = Gauge("forecaster_resident_streams", "Streams whose state is in memory", registry=registry)
        self.restored = Counter("forecaster_restored_streams", "States restored from the store", registry=registry)
        self.snapshots = Counter("forecaster_snapshots", "Snapshots written", registry=registry)
        self.damaged_snapshots = Counter(
            "forecaster_damaged_snapshots", "Snapshots that could not be read and were passed over", registry=registry
        )
        self.retention_steps = Gauge(
            "forecaster_retention_steps", "Steps of each log that are kept, 0: all", registry=registry
        )
        self.trimmed_streams = Counter("forecaster_trimmed_streams", "Logs that were trimmed", registry=registry)
        self.trimmed_rows = Counter("forecaster_trimmed_rows", "Rows that trimming deleted", registry=registry)
        self.begun_states = Counter(
            "forecaster_begun_states", "States that begin where a trimmed log does", registry=registry
        )
        self.failed_commits = Counter("forecaster_failed_commits", "Micro-batches not committed", registry=registry)
        self.model = Gauge(
            "forecaster_model_info", "1 for the model that serves", ("name", "version"), registry=registry
        )
        self.swaps = Counter("forecaster_model_swaps", "Model swaps", registry=registry)
        self.rollbacks = Counter(
            "forecaster_model_rollbacks", "Swaps back to the model before, whose states were kept", registry=registry
        )
        self.replay_progress = Gauge(
            "forecaster_replay_progress",
            "Share of streams whose states are derived for a coming model",
            registry=registry,
        )
        self.replayed_steps = Counter(
            "forecaster_replayed_steps", "Steps of logs folded to derive states for a coming model", registry=registry
        )
        self.challenger_failures = Counter(
            "forecaster_challenger_failures", "Challengers whose process crashed or hung", registry=registry
        )
        self.shadow = Gauge(
            "forecaster_shadow",
            "Accuracy of recent forecasts of challenger and champion over the same streams",
            ("model", "figure"),
            registry=registry,
        )
        self.refused_models = Counter("forecaster_refused_models", "Models that were not taken", registry=registry)
        self.registry_errors = Counter("forecaster_registry_errors", "Failed registry look-ups", registry=registry)
        self.registry_up = Gauge(
            "forecaster_registry_up", "1 if the registry answered the last look-up", registry=registry
        )
        self.registry_seen = Gauge(
            "forecaster_registry_seen_timestamp_seconds", "When the registry last answered", registry=registry
        )
        self.ready = Gauge(
            "forecaster_ready", "1 if the last question for readiness was answered yes", registry=registry
        )
        self.busy_seconds = Gauge(
            "forecaster_engine_busy_seconds", "How long the micro-batch at work has taken so far", registry=registry
        )

    def parts(self, parts: list[tuple[str, float, float]]) -> None:
        """Record the parts of a micro-batch: name, begin and end in seconds."""
        for name, begin, end in parts:
            self.part_seconds.labels(name).observe(end - begin)

    def observed(self, verdict: str, count: int) -> None:
        """Record what became of observations."""
        self.observations.labels(verdict).inc(count)

    def placed(self, surprises: npt.NDArray[np.float64]) -> None:
        """Record how far out observations lay in what was forecast for them."""
        for least in _SURPRISES:
            self.surprising.labels(str(least)).inc(int(np.count_nonzero(surprises >= least)))

    def scored(self, scores: npt.NDArray[np.float64]) -> None:
        """Record what truths added to the sums of scores."""
        for quantity, score in zip(QUANTITIES, scores.tolist(), strict=True):
            self.quality.labels(quantity).inc(max(score, 0.0))

    def compared(self, recent: Sequence[Figures]) -> None:
        """Record the figures of challenger and champion."""
        for model, found in zip(("challenger", "champion"), recent, strict=True):
            for name in ("relative_mae", "wql", "coverage_80"):
                self.shadow.labels(model, name).set(float(getattr(found, name)))

    def serves(self, name: str, version: str) -> None:
        """Record which model serves from now on."""
        self.model.clear()
        self.model.labels(name, version).set(1)


def exposition(services: Mapping[str | None, Requests]) -> bytes:
    """The exposition format of what was counted for each model, by the name that it is served under."""
    return generate_latest(_Merged(services))


class _Merged(CollectorRegistry):
    """Series of the same metric of several registries, told apart by a label."""

    def __init__(self, services: Mapping[str | None, Requests]) -> None:
        super().__init__()
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Every metric once."""
        found: dict[str, Metric] = {}
        for name, service in self._services.items():
            for metric in service.registry.collect():
                first = found.setdefault(metric.name, metric)
                if name is not None:
                    metric.samples = [
                        sample._replace(labels={**sample.labels, NAMED: name}) for sample in metric.samples
                    ]
                if first is not metric:
                    first.samples.extend(metric.samples)
        yield from found.values()
