"""Observers see every operation with its tries and its outcome, and can do no harm."""

from __future__ import annotations

import itertools
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import kvi
import pytest
from kvi import observers
from kvi.hookspecs import ObservedOperation, hookimpl
from kvi.middleware.observe import Observed
from kvi.middleware.retry import Retrying
from kvi.model import RangeResult, Scan
from kvi.observers.opentelemetry import OpenTelemetryObserver
from kvi.observers.prometheus import PrometheusObserver
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from tests.support.backends import Smallest, opened
from tests.support.faulty import Faulty, fails, kvi_over

_numbers = itertools.count()


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.all: list[ObservedOperation] = []

    @hookimpl
    def kvi_operation(self, operation: ObservedOperation) -> None:
        """Remember it."""
        self.all.append(operation)

    @property
    def short(self) -> list[tuple[str, str | None, str, int]]:
        """Name, key, outcome and attempts of each."""
        return [(o.name, o.key, o.outcome, o.attempts) for o in self.all]


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observers of one test are none of the next."""
    monkeypatch.setattr(observers, "active", ())


@pytest.fixture
def notes() -> Notes:
    observer = Notes()
    observers.register(observer)
    return observer


@pytest.fixture
def inner() -> Iterator[Faulty]:
    with Faulty(kvi.open(f"mem:observed-{next(_numbers)}")) as store:
        yield store


@pytest.fixture
def store(inner: Faulty) -> kvi.Kvi:
    at_once = kvi.RetryPolicy(min_wait=0, max_wait=0, factor=0)
    return kvi_over(
        inner,
        lambda below, at: Retrying(below, at_once, at.uri, lambda: at.closed),
        lambda below, at: Observed(below, at.uri),
    )


def test_every_operation(store: kvi.Kvi, notes: Notes) -> None:
    """By the name of the method that was called, with its key."""
    store.store("k", "v")
    store.get("k")
    list(store.range(prefix="k"))
    store.count()
    store.tas("k", "v", "w")
    store.cas("k", 0, "x")
    store.transaction("k", "=", "w", "a", "1", "b", "2")
    store.txn(then=[kvi.Get("k")])
    store.watch("k").cancel()
    store.delete("k")
    store.delete_range(prefix="")
    store.ping()
    assert notes.short == [
        ("store", "k", "ok", 1),
        ("get", "k", "ok", 1),
        ("range", "k", "ok", 1),
        ("count", "", "ok", 1),
        ("tas", "k", "ok", 1),
        ("cas", "k", "ok", 1),
        ("transaction", "k", "ok", 1),
        ("txn", "k", "ok", 1),
        ("watch", "k", "ok", 1),
        ("delete", "k", "ok", 1),
        ("delete_range", "", "ok", 1),
        ("ping", None, "ok", 1),
    ]
    for operation in notes.all:
        assert operation.uri == store.uri
        assert operation.error is None
        assert 0 < operation.duration < 60


def test_leases_and_locks(store: kvi.Kvi, notes: Notes) -> None:
    """What kvi itself asks of the store for them is seen too."""
    with store.lock("jobs"):
        pass
    with store.lease(10) as lease:
        lease.renew()
    names = [name for name, _, _, _ in notes.short]
    for name in ("lease_grant", "lock_claim", "lock_release", "lease_renew", "lease_revoke"):
        assert name in names


def test_attempts_and_outcome(store: kvi.Kvi, inner: Faulty, notes: Notes) -> None:
    """How often the store was asked, and what came of it in the end."""
    inner.fails("get", kvi.Unavailable("x"), kvi.Timeout("x"))
    store.get("k")
    inner.loses("store", kvi.OutcomeUnknown("lost"))
    with pytest.raises(kvi.OutcomeUnknown) as caught:
        store.store("k", "secret")
    assert notes.short == [("get", "k", "ok", 3), ("store", "k", "OutcomeUnknown", 1)]
    assert notes.all[1].error is caught.value
    assert "secret" not in repr(notes.all)


def test_further_pages(notes: Notes) -> None:
    """Each page of a range but the first is told by itself, also one that fails."""

    class Failing(Smallest):
        def _range(self, scan: Scan, timeout: float) -> RangeResult:
            def pages() -> Iterator[list[kvi.KeyValue]]:
                yield [kvi.KeyValue("a", b"", 1, 1)]
                yield [kvi.KeyValue("b", b"", 1, 1)]
                raise kvi.Unavailable("gone")

            return RangeResult(1, pages)

    with opened(Failing(kvi.open("mem:"))) as plain:
        store = kvi_over(plain, lambda below, at: Observed(below, at.uri))
        with pytest.raises(kvi.Unavailable):
            list(store.range("a"))
    assert notes.short == [
        ("range", "a", "ok", 1),
        ("range_page", "a", "ok", 1),
        ("range_page", "a", "Unavailable", 1),
    ]


def test_what_was_interrupted_is_not_told_as_done(
    store: kvi.Kvi, inner: Faulty, notes: Notes
) -> None:
    """An interrupt, or a mistake in a backend, is neither "ok" nor an error of the store."""
    inner.before["get"] = fails(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        store.get("k")
    assert notes.short == []


def test_observer_that_raises_harms_nobody(
    store: kvi.Kvi, notes: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the operation nor the other observers; it is logged."""

    class Raising:
        @hookimpl
        def kvi_operation(self, operation: ObservedOperation) -> None:
            raise ZeroDivisionError("observer")

    faulty = Raising()
    observers.register(faulty)
    late = Notes()
    observers.register(late)
    with caplog.at_level(logging.WARNING, logger="kvi"):
        store.store("k", "v")
        store.get("k")
    assert notes.short == late.short
    assert len(notes.all) == 2
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
    assert "ZeroDivisionError" in caplog.records[0].getMessage()
    observers.unregister(faulty)
    observers.unregister(faulty)
    caplog.clear()
    store.get("k")
    assert not caplog.records


def test_what_cannot_observe(notes: Notes) -> None:
    """An object without the hook is refused; one that observes already is not told twice."""

    class Misspelled:
        @hookimpl
        def kvi_operations(self, operation: ObservedOperation) -> None: ...

    class Unmarked:
        def kvi_operation(self, operation: ObservedOperation) -> None: ...

    for plugin in (Misspelled(), Unmarked(), object()):
        with pytest.raises(kvi.InvalidArgument, match="kvi_operation"):
            observers.register(plugin)
    observers.register(notes)
    assert len(observers.active) == 1


def test_observers_of_installed_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are there by an entry point; one that cannot be used hides no other."""
    (tmp_path / "acme_observer.py").write_text(
        textwrap.dedent(
            """
            from kvi.hookspecs import hookimpl
            seen = []

            @hookimpl
            def kvi_operation(operation):
                seen.append(operation.name)
            """
        )
    )
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[kvi.observers]\nacme = acme_observer\nbroken = acme_missing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(observers, "_loaded", False)
    with caplog.at_level(logging.WARNING, logger="kvi"), kvi.Backend("mem:installed") as store:
        store.get("k")
    assert sys.modules["acme_observer"].seen == ["get"]
    assert "acme_missing" in caplog.text
    del sys.modules["acme_observer"]


# -- those that come with kvi ---------------------------------------------------------------------


def test_prometheus(store: kvi.Kvi, inner: Faulty) -> None:
    """Operations by outcome, their time, and the tries beyond the first."""
    registry = CollectorRegistry()
    observers.register(PrometheusObserver(registry))
    inner.fails("get", kvi.Unavailable("x"), kvi.Unavailable("x"))
    store.get("k")
    store.get("k")
    inner.fails("store", kvi.PermissionDenied("no"))
    with pytest.raises(kvi.PermissionDenied):
        store.store("k", "v")

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"store": store.uri, **labels})

    assert sample("kvi_operations_total", operation="get", outcome="ok") == 2
    assert sample("kvi_operations_total", operation="store", outcome="PermissionDenied") == 1
    assert sample("kvi_operation_retries_total", operation="get") == 2
    assert sample("kvi_operation_retries_total", operation="store") is None
    assert sample("kvi_operation_duration_seconds_count", operation="get") == 2
    assert (sample("kvi_operation_duration_seconds_sum", operation="get") or 0) > 0


def test_opentelemetry(store: kvi.Kvi, inner: Faulty) -> None:
    """A span each, below the caller's, with the time that it took and what came of it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    observers.register(OpenTelemetryObserver(tracer))
    observers.register(OpenTelemetryObserver(tracer, keys=False))
    inner.fails("get", kvi.Unavailable("x"))
    with tracer.start_as_current_span("caller") as caller:
        store.get("k")
        inner.fails("store", kvi.PermissionDenied("not for you"))
        with pytest.raises(kvi.PermissionDenied):
            store.store("k", "secret")
    got, bare, stored, _, outer = exporter.get_finished_spans()
    assert outer.name == "caller"
    assert (got.name, stored.name) == ("kvi get", "kvi store")
    assert got.attributes is not None
    assert dict(got.attributes) == {
        "db.system.name": "mem",
        "db.operation.name": "get",
        "db.namespace": store.uri,
        "kvi.attempts": 2,
        "kvi.key": "k",
    }
    assert bare.attributes is not None
    assert "kvi.key" not in bare.attributes
    assert got.parent is not None
    assert got.parent.span_id == caller.get_span_context().span_id
    assert got.status.status_code is StatusCode.UNSET
    assert stored.attributes is not None
    assert stored.attributes["error.type"] == "PermissionDenied"
    assert stored.status.status_code is StatusCode.ERROR
    assert stored.status.description == "not for you"
    assert got.start_time is not None
    assert got.end_time is not None
    assert outer.start_time is not None
    assert outer.start_time <= got.start_time <= got.end_time
    assert "secret" not in stored.to_json()
