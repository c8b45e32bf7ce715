"""What Prometheus reads at /metrics."""

import os

import prometheus_client as prometheus
from prometheus_client import multiprocess

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server; of all its processes if there are several.

    With several, the environment's PROMETHEUS_MULTIPROC_DIR names a folder that they share.
    """

    def __init__(self):
        self.registry = prometheus.CollectorRegistry()
        shared = {"registry": self.registry, "namespace": "prototrain"}
        self.stages = prometheus.Histogram(
            "stage_seconds", "Time by stage of a query", ["stage"], buckets=SECONDS, **shared
        )
        self.requests = prometheus.Histogram(
            "request_seconds", "Time of a search", ["status"], buckets=SECONDS, **shared
        )
        self.batches = prometheus.Histogram(
            "batch_size", "Queries embedded at once", buckets=SIZES, **shared
        )
        self.queue = prometheus.Gauge(
            "queue_length", "Requests that wait", multiprocess_mode="livesum", **shared
        )
        self.version = prometheus.Gauge(
            "index_version", "Version served", ["catalogue"], multiprocess_mode="min", **shared
        )
        self.reloads = prometheus.Counter(
            "reloads", "New versions of an index, taken or refused", ["result"], **shared
        )
        self.refusals = prometheus.Counter("refusals", "Requests refused", ["reason"], **shared)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        registry = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = prometheus.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
        return prometheus.generate_latest(registry)
