"""`Kvi`, what it derives, and its wrappers."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from typing import Any

import kvi
import pytest
from kvi.backend.forwarding import Forwarding
from kvi.backend.namespace import Namespace
from kvi.capabilities import Capabilities
from kvi.errors import Unavailable
from kvi.feed import Feed, Wake, WatchSpec
from kvi.model import Grant, KeyValue, RangeResult, Scan, Txn, TxnResult
from kvi.primitives import Primitives

PRIMITIVES = {name for name in kvi.Kvi.__abstractmethods__ if name.startswith("_")}


class Smallest(Primitives):
    """The smallest backend there can be: nine primitives over a memory store."""

    def __init__(self, inner: kvi.Kvi, capabilities: Capabilities) -> None:
        super().__init__("smallest:", capabilities, timeout=5)
        self.inner = inner

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        return self.inner._get(key, timeout)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return self.inner._range(scan, timeout)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        return self.inner._txn(txn, timeout)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return self.inner._watch(spec, wake, timeout)

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return self.inner._lease_grant(ttl, timeout)

    def _lease_renew(self, lease: int, timeout: float) -> float:
        return self.inner._lease_renew(lease, timeout)

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        self.inner._lease_revoke(lease, timeout)

    def _ping(self, timeout: float) -> None:
        self.inner._ping(timeout)

    def _close(self) -> None:
        self.inner.close()


def test_wrappers_forward_every_primitive() -> None:
    """Forwarding implements each primitive itself, so that none can fall through to a default."""
    assert {"_get", "_range", "_txn", "_put", "_delete_range", "_close"} <= PRIMITIVES
    for name in PRIMITIVES:
        assert name in vars(Forwarding), name
    assert not inspect.isabstract(Namespace)


def test_a_wrapper_that_forgets_is_no_wrapper() -> None:
    """Without one of the primitives a subclass of Kvi cannot be made."""

    class Forgetful(kvi.Kvi):
        pass

    with pytest.raises(TypeError, match="_delete_range"):
        Forgetful("x:", kvi.open("mem:").capabilities, timeout=1)  # type: ignore[abstract]


def test_call_that_close_interrupts_raises_closed() -> None:
    """A call that fails because the handle was closed meanwhile says so, with the cause chained."""
    entered, release = threading.Event(), threading.Event()

    class Blocking(Smallest):
        def _get(self, key: str, timeout: float) -> KeyValue | None:
            entered.set()
            release.wait(10)
            raise Unavailable("socket shut down")

        def _close(self) -> None:
            release.set()

    store = Blocking(kvi.open("mem:"), kvi.open("mem:").capabilities)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            store.get("k")
        except kvi.KviError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(10)
    store.close()
    thread.join(10)
    assert isinstance(caught[0], kvi.Closed)
    assert isinstance(caught[0].__cause__, Unavailable)
    assert caught[0].operation == "get"


def test_close_runs_once() -> None:
    """However many threads close a handle, its resources are freed once."""
    closes: list[int] = []

    class Counting(Smallest):
        def _close(self) -> None:
            closes.append(1)

    store = Counting(kvi.open("mem:"), kvi.open("mem:").capabilities)
    threads = [threading.Thread(target=store.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert closes == [1]


def test_error_in_a_later_page_tells_its_place() -> None:
    """What fails while a range is iterated carries operation and URI like any error."""

    class Failing(Smallest):
        def _range(self, scan: Scan, timeout: float) -> RangeResult:
            def pages() -> Any:
                yield [KeyValue("a", b"", 1, 1)]
                raise Unavailable("gone")

            return RangeResult(1, pages)

    store = Failing(kvi.open("mem:"), kvi.open("mem:").capabilities)
    entries = iter(store.range())
    assert next(entries).key == "a"
    with pytest.raises(Unavailable) as caught:
        next(entries)
    assert (caught.value.operation, caught.value.uri) == ("range", "smallest:")


def test_range_delete_that_ends_half_way() -> None:
    """If part of a range is deleted and then the store is gone, the outcome is not certain."""

    class Failing(Smallest):
        left = 1

        def _txn(self, txn: Txn, timeout: float) -> TxnResult:
            if not self.left:
                raise Unavailable("gone")
            self.left -= 1
            return super()._txn(txn, timeout)

    inner = kvi.open("mem:half-way")
    limits = replace(inner.capabilities, max_txn_ops=16)
    for number in range(40):
        inner.store(f"k{number:02}", b"")
    with pytest.raises(kvi.OutcomeUnknown, match="16 keys"):
        Failing(inner, limits).delete_range(prefix="k")
    assert inner.count() == 24


def test_import_surface() -> None:
    """The public names are those that programs need, sorted, and all there."""
    assert kvi.__all__ == sorted(kvi.__all__)
    assert len(kvi.__all__) <= 55
    for name in kvi.__all__:
        assert hasattr(kvi, name)


def test_import_is_lean() -> None:
    """What leases, locks and watches need is imported by the first who uses them, or their types.

    Neither ``import kvi`` nor reading and writing costs it; the clock alone comes with memory.
    """
    program = """
        import sys

        def loaded():
            return {
                name for name in sys.modules
                if name.startswith(("kvi.recipes", "kvi.runtime", "kvi.feed"))
            } - {"kvi.runtime", "kvi.clock"}

        import kvi
        assert not any(name.startswith("kvi.runtime") for name in sys.modules)
        assert not loaded()
        with kvi.open("mem:") as store, store.namespace("n") as view:
            view.store("k", "v"); view.get("k"); list(view.range()); view.tas("k", "v", None)
        assert not loaded(), loaded()
        import threading
        assert threading.active_count() == 1
        for name in ("Lease", "Lock", "TempKey", "Watch"):
            assert getattr(kvi, name).__name__ == name
            assert getattr(kvi, name).__module__.startswith("kvi.recipes.")
        with kvi.open("mem:") as store:
            assert type(store.lock()) is kvi.Lock
            assert type(store.lease(60)) is kvi.Lease
            assert type(store.temp_key("k")) is kvi.TempKey
            assert type(store.watch("k")) is kvi.Watch
        try:
            kvi.Nothing
        except AttributeError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("module 'kvi' has no attribute 'Nothing'\n", "")
