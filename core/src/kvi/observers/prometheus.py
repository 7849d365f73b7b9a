"""Metrics of every operation, for Prometheus. Needs the extra ``kvi-core[prometheus]``.

::

    kvi.observers.register(PrometheusObserver())

=========================================  =============================  =========================
metric                                     labels                         meaning
=========================================  =============================  =========================
``kvi_operations_total``                   store, operation, outcome      operations that ended
``kvi_operation_duration_seconds``         store, operation               their time, as histogram
``kvi_operation_retries_total``            store, operation               tries beyond the first
=========================================  =============================  =========================

``store`` is the URI with secrets replaced, ``outcome`` is ``ok`` or the class of the error. Keys
are no labels: their number has no bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from kvi.hookspecs import ObservedOperation, hookimpl

__all__ = ["PrometheusObserver"]

# From a read from memory to the usual time-out.
BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 5.0, 10.0)


class PrometheusObserver:
    """Counts and times the operations of all backends. Safe for threads.

    ``registry`` is where the metrics are registered, by default the process's own; one registry
    takes one observer. ``buckets`` are the upper bounds of the histogram in seconds.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, buckets: Sequence[float] = BUCKETS
    ) -> None:
        where = ("store", "operation")
        self._operations = Counter(
            "kvi_operations", "Operations that ended.", (*where, "outcome"), registry=registry
        )
        self._durations = Histogram(
            "kvi_operation_duration_seconds",
            "Seconds that operations took, with all tries.",
            where,
            buckets=tuple(buckets),
            registry=registry,
        )
        self._retries = Counter(
            "kvi_operation_retries", "Tries beyond the first.", where, registry=registry
        )

    @hookimpl
    def kvi_operation(self, operation: ObservedOperation) -> None:
        """Count it."""
        where = (operation.uri, operation.name)
        self._operations.labels(*where, operation.outcome).inc()
        self._durations.labels(*where).observe(operation.duration)
        if operation.attempts > 1:
            self._retries.labels(*where).inc(operation.attempts - 1)
