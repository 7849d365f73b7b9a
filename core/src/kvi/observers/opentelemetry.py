"""A span for every operation, for OpenTelemetry. Needs the extra ``kvi-core[opentelemetry]``.

::

    kvi.observers.register(OpenTelemetryObserver())

A span is a child of the one that is current where the operation was called. It is named after the
operation and has these attributes (the first four are of OpenTelemetry's semantic conventions for
database calls):

=======================  ==========================================================================
``db.system.name``       the store, by the scheme of its URI, such as ``etcd``
``db.operation.name``    the operation, such as ``get``
``db.namespace``         the URI, with secrets replaced
``error.type``           the class of the error, if it failed; its text is the span's status
``kvi.key``              the key, if there is one and the observer was not told to leave it out
``kvi.attempts``         how often the store was asked
=======================  ==========================================================================
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from kvi.hookspecs import ObservedOperation, hookimpl

__all__ = ["OpenTelemetryObserver"]


class OpenTelemetryObserver:
    """Makes a span of every operation of all backends. Safe for threads.

    ``tracer`` is the tracer to use, by default that of the process's provider. ``keys=False``
    leaves the keys out, and the texts of errors, which may quote them: where keys are private, or
    too many.
    """

    def __init__(self, tracer: Tracer | None = None, *, keys: bool = True) -> None:
        self._tracer = tracer if tracer is not None else trace.get_tracer("kvi")
        self._keys = keys

    @hookimpl
    def kvi_operation(self, operation: ObservedOperation) -> None:
        """Make a span of it, after the fact."""
        attributes: dict[str, AttributeValue] = {
            "db.system.name": operation.uri.partition(":")[0],
            "db.operation.name": operation.name,
            "db.namespace": operation.uri,
            "kvi.attempts": operation.attempts,
        }
        if self._keys and operation.key is not None:
            attributes["kvi.key"] = operation.key
        if operation.error is not None:
            attributes["error.type"] = operation.outcome
        span = self._tracer.start_span(
            f"kvi {operation.name}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=operation.began,
        )
        if operation.error is not None:
            text = operation.error.message if self._keys else operation.outcome
            span.set_status(Status(StatusCode.ERROR, text))
        span.end(operation.began + round(operation.duration * 1e9))
