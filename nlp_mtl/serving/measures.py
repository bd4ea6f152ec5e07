"""What the server counts, for Prometheus."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

PATHS = frozenset({"/", "/predict", "/tasks", "/health", "/metrics"})
"""Those that are counted by name."""

_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Measures:
    """Counts and times of one server: nothing of what a text says."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        kept: Any = {"registry": self._registry}
        self._requests = Counter(
            "nlp_mtl_requests", "Answered requests, by path and status.", ["path", "status"], **kept
        )
        self._seconds = Histogram(
            "nlp_mtl_request_seconds", "From a request to its answer.", ["path"], buckets=_SECONDS, **kept
        )
        self._texts = Counter("nlp_mtl_texts", "Texts that were answered.", **kept)
        self._batch_texts = Histogram(
            "nlp_mtl_batch_texts", "Texts that were answered together.", buckets=_TEXTS, **kept
        )
        self._batch_seconds = Histogram(
            "nlp_mtl_batch_seconds", "What a batch took the model.", buckets=_SECONDS, **kept
        )
        self._waiting = Gauge("nlp_mtl_waiting_texts", "Texts that wait to be answered.", **kept)

    def watch_queue(self, count: Callable[[], float]) -> None:
        """Where the number of waiting texts comes from."""
        self._waiting.set_function(count)

    def batch(self, texts: int, seconds: float) -> None:
        """Texts were answered together."""
        self._texts.inc(texts)
        self._batch_texts.observe(texts)
        self._batch_seconds.observe(seconds)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        path = path if path in PATHS else "other"  # a label for each that clients think of would fill the memory
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
