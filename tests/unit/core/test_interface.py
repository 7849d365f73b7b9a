"""`Kvi`, and what `Primitives` derives for a backend."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi.errors import Unavailable
from kvi.model import KeyValue, RangeResult, Scan, Txn, TxnResult
from kvi.primitives import Primitives

from tests.support.backends import Smallest, opened

PRIMITIVES = {
    *("_get", "_range", "_txn", "_watch", "_ping", "_close"),
    *("_lease_grant", "_lease_renew", "_lease_revoke"),
}


def test_a_backend_that_forgets_is_none() -> None:
    """Without one of the nine primitives a backend's object cannot be made."""

    class Forgetful(Primitives):
        pass

    assert Forgetful.__abstractmethods__ == PRIMITIVES
    with pytest.raises(TypeError, match="_lease_grant"):
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

    store = opened(Blocking(kvi.open("mem:")))
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

    store = opened(Counting(kvi.open("mem:")))
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

    store = opened(Failing(kvi.open("mem:")))
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
        opened(Failing(inner, limits)).delete_range(prefix="k")
    assert inner.count() == 24


def test_import_surface() -> None:
    """The public names are those that programs need, sorted, and all there."""
    assert kvi.__all__ == sorted(kvi.__all__)
    assert len(kvi.__all__) <= 58
    for name in kvi.__all__:
        assert hasattr(kvi, name)


def test_import_is_lean() -> None:
    """What leases, locks and watches need is imported by the first who uses them, or their types.

    Neither ``import kvi`` nor reading and writing costs it.
    """
    program = """
        import sys

        def loaded():
            return {
                name for name in sys.modules
                if name.startswith(("kvi.flow.", "kvi.sync."))
            } - {"kvi.flow.scope", "kvi.sync.face", "kvi.sync.kvi", "kvi.sync.opening"}

        import kvi
        assert not loaded(), loaded()
        with kvi.open("mem:") as store, store.namespace("n") as view:
            view.store("k", "v"); view.get("k"); list(view.range()); view.tas("k", "v", None)
        assert not loaded(), loaded()
        import threading
        assert threading.active_count() == 1
        for name in ("Lease", "Lock", "TempKey", "Watch"):
            assert getattr(kvi, name).__name__ == name
            assert getattr(kvi, name).__module__.startswith("kvi.sync.")
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


@pytest.mark.parametrize("uri", ["mem:", "sqlite:{}/store.db"])
def test_call_that_fails_leaves_no_garbage(uri: str, tmp_path: Path) -> None:
    """Its error goes with whoever caught it, and with it all that its frames hold."""
    with kvi.open(uri.format(tmp_path)) as store:
        gc.collect()
        before = errors_alive()
        gc.disable()
        try:
            for call in (store.store, store.store):
                with suppress(kvi.LeaseLost):
                    call("k", b"v", lease=12345)
            with suppress(kvi.InvalidKey):
                store.get("")
            assert [one for one in errors_alive() if not any(one is old for old in before)] == []
        finally:
            gc.enable()


def errors_alive() -> list[kvi.KviError]:
    return [one for one in gc.get_objects() if isinstance(one, kvi.LeaseLost | kvi.InvalidKey)]
