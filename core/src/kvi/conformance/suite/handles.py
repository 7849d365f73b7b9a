"""The contract: opening, options, namespaces, closing."""

from __future__ import annotations

import gc
import operator
import os
import pickle
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import kvi
from kvi.conformance.clients import run_clients
from kvi.conformance.contract import rule
from kvi.conformance.neighbours import snapshot
from kvi.conformance.processes import UNANSWERED, in_a_child
from kvi.conformance.rules import Rules
from kvi.conformance.used import grown, in_use
from kvi.conformance.waiting import no_answer, until, untimed

HANDLES = 4  # opened and closed, to see what is left of each

WRITERS, FORKS = 3, 5  # threads that write, and how often their process is forked meanwhile

CALLS: list[tuple[str, Callable[[kvi.Kvi], object]]] = [
    ("get", lambda s: s.get("k")),
    ("range", lambda s: s.range()),
    ("range", lambda s: s.range(limit=0)),
    ("count", lambda s: s.count()),
    ("store", lambda s: s.store("k", b"x")),
    ("delete", lambda s: s.delete("k")),
    ("delete_range", lambda s: s.delete_range(prefix="")),
    ("tas", lambda s: s.tas("k", None, b"x")),
    ("cas", lambda s: s.cas("k", 0, b"x")),
    ("txn", lambda s: s.txn(then=[kvi.Put("k", b"x")])),
    ("transaction", lambda s: s.transaction("k", "=", b"", "k", b"x", "k", b"x")),
    ("update", lambda s: s.update("k", lambda old: b"x")),
    ("atomically", lambda s: s.atomically(lambda tx: tx.put("k", b"x"))),
    ("namespace", lambda s: s.namespace("n")),
    ("ping", lambda s: s.ping()),
    ("client", lambda s: s.client),
]


class TestOptions(Rules):
    """URIs and options are checked at open."""

    @rule("handle.options")
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("nonsense", "1"),
            ("timeot", 3),
            ("timeout", 0),
            ("timeout", -1),
            ("timeout", "soon"),
            ("timeout", float("nan")),
            ("timeout", float("inf")),
            ("timeout", True),
            ("namespace", ""),
            ("namespace", "/a"),
            ("namespace", "a/"),
            ("namespace", 7),
        ],
        ids=str,
    )
    def test_bad_option(self, kvi_uri: str, option: str, value: Any) -> None:
        """An unknown option or a bad value is InvalidOption that names the option."""
        with pytest.raises(kvi.InvalidOption, match=option):
            kvi.open(kvi_uri, **{option: value})

    @rule("namespace.nested", "handle.options")
    def test_option_in_uri_or_keyword(self, kvi_uri: str, root: kvi.Kvi) -> None:
        """Every scheme takes ?namespace=a, in the URI or as keyword, not in both."""
        kvi_uri = untimed(kvi_uri)
        mark = "&" if "?" in kvi_uri else "?"
        with (
            kvi.open(f"{kvi_uri}{mark}namespace=a&timeout=4") as one,
            kvi.open(kvi_uri, namespace="a", timeout=4) as two,
        ):
            one.store("k", b"v")
            assert two.get("k").value == b"v"  # type: ignore[union-attr]
            assert snapshot(root) == {"a/k": b"v"}
        with pytest.raises(kvi.InvalidOption, match="timeout"):
            kvi.open(f"{kvi_uri}{mark}timeout=4", timeout=4)

    @rule("handle.timeout")
    @pytest.mark.parametrize("timeout", [0, -1, "5", float("nan"), float("inf"), True], ids=repr)
    def test_bad_timeout_of_a_call(self, store: kvi.Kvi, peer: kvi.Kvi, timeout: Any) -> None:
        """A timeout= that is no positive number of seconds is InvalidArgument; nothing is sent."""
        for call in (
            lambda: store.get("k", timeout=timeout),
            lambda: store.store("k", b"", timeout=timeout),
            lambda: store.delete("k", timeout=timeout),
            lambda: store.range(timeout=timeout),
            lambda: store.count(timeout=timeout),
            lambda: store.delete_range(prefix="", timeout=timeout),
            lambda: store.tas("k", None, b"", timeout=timeout),
            lambda: store.cas("k", 0, b"", timeout=timeout),
            lambda: store.txn(then=[kvi.Put("k", b"")], timeout=timeout),
            lambda: store.transaction("k", "=", b"", "k", b"", "k", b"", timeout=timeout),
            lambda: store.ping(timeout=timeout),
        ):
            with pytest.raises(kvi.KviError) as caught:
                call()
            assert isinstance(caught.value, kvi.InvalidArgument), "it was taken for a time"
            assert "timeout" in caught.value.message
        assert snapshot(peer) == {}

    @rule("handle.timeout")
    def test_timeout_of_a_call(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Every call takes timeout=."""
        store.store("k", b"v", timeout=3)
        assert peer.get("k", timeout=3) is not None
        assert len(list(peer.range(timeout=3))) == peer.count(timeout=3) == 1
        assert store.tas("k", b"v", b"w", timeout=3)
        assert store.txn(then=[kvi.Get("k")], timeout=3)
        assert store.delete("k", timeout=3)
        store.ping(timeout=3)

    @rule("error.place")
    def test_errors_tell_where_and_pickle(self, store: kvi.Kvi) -> None:
        """Every error carries operation, key and redacted uri, and survives pickling."""
        with pytest.raises(kvi.KviError) as caught:
            store.store("k", None)  # type: ignore[arg-type]
        error = caught.value
        assert (error.operation, error.key, error.uri) == ("store", "k", store.uri)
        copy = pickle.loads(pickle.dumps(error))
        assert isinstance(copy, kvi.InvalidArgument)
        assert str(copy) == str(error)
        assert (copy.operation, copy.key, copy.uri) == ("store", "k", store.uri)


class TestHandles(Rules):
    """A handle is a context manager, safe for threads, and closes for good."""

    @rule("handle.ping")
    def test_ping(self, store: kvi.Kvi) -> None:
        """Ping of a store that answers returns, and changes nothing."""
        before = snapshot(store)
        store.ping()
        assert snapshot(store) == before

    @rule("handle.ping")
    def test_ping_is_no_write(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Ping makes no revision, and no event."""
        store.store("k", b"1")
        before = peer.range().revision
        with peer.watch(prefix="") as watch:
            store.ping()
            assert peer.range().revision == before
            store.store("k", b"2")
            assert watch.next(20).key == "k"

    @rule("handle.closed")
    @pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
    def test_closed_handle_refuses(
        self, store: kvi.Kvi, root: kvi.Kvi, kvi_uri: str, name: str, call: Any
    ) -> None:
        """After close every call that would touch the store raises Closed; others go on."""
        store.store("k", b"kept")
        before = snapshot(root)
        handle = kvi.open(kvi_uri)
        opened = handle.closed
        handle.close()
        assert (opened, handle.closed) == (False, True)
        with pytest.raises(kvi.Closed) as caught:
            call(handle)
        assert caught.value.operation == name
        handle.close()
        assert snapshot(root) == before
        store.ping()

    @rule("handle.closed")
    def test_nothing_of_it_is_left(self, root: kvi.Kvi, kvi_uri: str) -> None:
        """The threads and the connections of a closed handle are gone, whatever it was used for."""

        def use() -> None:
            with (
                kvi.open(kvi_uri) as handle,
                handle.watch("k") as watch,
                handle.lease(60) as lease,
                handle.lock("jobs", timeout=20),
            ):
                handle.store("k", b"", lease=lease)
                assert watch.next(20).key == "k"
                assert handle.count() == len(list(handle.range()))

        use()  # some are for all handles, from the first on
        before = in_use()
        for _ in range(HANDLES):
            use()
        for kind in before:
            try:
                until(lambda kind=kind: len(grown(before)[kind]) < HANDLES)
            except AssertionError:
                left = sorted(grown(before)[kind])
                raise AssertionError(f"{HANDLES} closed handles have left {kind}: {left}") from None

    @rule("handle.store")
    def test_data_survives_close(self, kvi_uri: str, root: kvi.Kvi) -> None:
        """What was stored is there for the next open."""
        with kvi.open(kvi_uri) as handle:
            revision = handle.store("k", b"v")
        with kvi.open(kvi_uri) as handle:
            assert handle.get("k").revision == revision  # type: ignore[union-attr]
            assert handle.store("k", b"w") > revision

    @rule("handle.closed")
    def test_close_in_the_middle_of_a_range(self, store: kvi.Kvi, kvi_uri: str) -> None:
        """A range that needs another page of a closed handle raises Closed, it does not end."""
        for first in range(0, 1500, 50):
            store.txn(then=[kvi.Put(f"k{i:05}", b"v" * 50) for i in range(first, first + 50)])
        handle = kvi.open(kvi_uri)
        entries = iter(handle.range())
        next(entries)
        handle.close()
        seen = 1
        try:
            for _ in entries:
                seen += 1
        except kvi.Closed:
            pass
        else:
            assert seen >= 1500, "the range ended early without an error"
        with pytest.raises(kvi.Closed):
            handle.range()

    @rule("handle.threads")
    def test_threads_share_a_handle(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Any number of threads may use one handle at once."""

        def work(number: int) -> None:
            for i in range(25):
                key = f"t{number}/{i}"
                revision = store.store(key, key)
                entry = store.get(key)
                assert entry is not None
                assert (entry.text, entry.revision) == (key, revision)
            assert store.count(prefix=f"t{number}/") == 25

        run_clients(work, clients=8)
        assert peer.count() == 8 * 25

    @rule("handle.fork")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads of pytest and the client
    def test_fork(self, store: kvi.Kvi, peer: kvi.Kvi, kvi_uri: str) -> None:
        """A child's every use of its parent's handle raises UsedAfterFork; the parent's goes on.

        The child can open the store anew, and that changes nothing for the parent either: neither
        for its watches, nor for calls that are under way on other threads.
        """
        store.store("k", b"parent")
        over = threading.Event()
        failed: list[BaseException] = []

        def call() -> None:
            try:
                while not over.is_set():
                    store.get("k")
            except BaseException as error:  # noqa: BLE001  (shown by the main thread)
                failed.append(error)

        def child() -> int:
            if not store.closed:
                return 1
            for number, (_, call) in enumerate(CALLS):
                try:
                    call(store)
                except kvi.UsedAfterFork:
                    continue
                return 3 + number
            store.close()
            try:
                with kvi.open(kvi_uri) as own, own.watch("of the child") as watch:
                    own.store("of the child", b"")
                    seen = watch.next(10)
                    own.delete("of the child")
                    return 0 if own.count() and seen else 2
            except kvi.KviError as error:
                if no_answer(error):
                    return UNANSWERED
                raise

        told = [
            "",
            "the handle does not tell the child that it is closed",
            "the child opened the store anew and found it empty, or watched it in vain",
            *(f"the child could use its parent's handle: {name}" for name, _ in CALLS),
            "an error in the child that is no UsedAfterFork, or its end",
        ]
        callers = [threading.Thread(target=call) for _ in range(2)]
        with store.watch("k") as watch:
            for caller in callers:
                caller.start()
            try:
                for turn in range(3):
                    assert not told[in_a_child(child)]
                    assert peer.get("k").value == b"parent"  # type: ignore[union-attr]
                    for value in (b"still open %d" % turn, b"parent"):
                        store.store("k", value)
                        event = watch.next(10)
                        assert event is not None
                        assert event.value == value
                        assert peer.get("k").value == value  # type: ignore[union-attr]
            finally:
                over.set()
                for caller in callers:
                    caller.join(60)
        for error in failed:
            raise error

    @rule("handle.fork")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads of pytest and the client
    def test_fork_amid_writes(self, store: kvi.Kvi, kvi_uri: str) -> None:
        """No write of the parent fails by a fork or by what the child does; none is tried again.

        Nothing of the child, not even its close, may go over a connection of the parent.
        """
        over = threading.Event()
        failed: list[BaseException] = []
        slow: list[BaseException] = []
        done = [0] * WRITERS

        def child() -> int:
            with suppress(kvi.UsedAfterFork):
                own.store("conformance/ns/child", b"")
                return 1
            own.close()
            gc.collect()
            return 0

        def write(number: int) -> None:
            began = 0.0
            try:
                while not over.is_set():
                    began = time.monotonic()
                    own.store(f"conformance/ns/{number}", str(done[number]))
                    done[number] += 1
            except BaseException as error:  # noqa: BLE001  (shown by the main thread)
                # What took all of its time was not answered; a connection that breaks is at once.
                waited = no_answer(error) and time.monotonic() - began >= timeout
                (slow if waited else failed).append(error)

        def go_on() -> None:
            before = done.copy()
            until(lambda: failed or slow or all(map(operator.gt, done, before)))

        with kvi.open(kvi_uri, retry=None) as own:
            timeout = own._scope.primitives.timeout
            threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
            for thread in threads:
                thread.start()
            try:
                for _ in range(FORKS):
                    go_on()
                    assert in_a_child(child) == 0, "the child could use its parent's handle"
                go_on()
            finally:
                over.set()
                for thread in threads:
                    thread.join(60)
            assert not failed, "a write failed by a fork, or by what the child did"
            for error in slow:
                raise error
            for number in range(WRITERS):
                entry = own.get(f"conformance/ns/{number}")
                assert entry is not None
                assert entry.text == str(done[number] - 1)
            assert own.get("conformance/ns/child") is None

    @rule("handle.uri")
    def test_repr_tells_the_store(self, store: kvi.Kvi) -> None:
        """Repr names the store by its redacted URI."""
        assert store.uri in repr(store)

    @rule("handle.capabilities")
    def test_capabilities_are_sound(self, store: kvi.Kvi) -> None:
        """Declared limits keep the contract's own bounds."""
        capabilities = store.capabilities
        assert capabilities.max_key is None or capabilities.max_key >= 4096
        assert capabilities.max_txn_ops is None or capabilities.max_txn_ops >= 16
        assert capabilities.txn_delete_ops in (1, 2)
        assert capabilities.max_value is None or capabilities.max_value >= 65_536
        assert capabilities.lease_expiry_factor >= 1
        assert capabilities.lease_min_ttl >= 0
        assert capabilities.lock_delay_factor >= 0


class TestNamespaces(Rules):
    """Two namespaces never see each other."""

    @rule("namespace.apart")
    def test_views_are_apart(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A namespace puts its name before every key; a never sees ab, nor the other way round."""
        with store.namespace("a") as a, store.namespace("ab") as ab, store.namespace("a/b") as deep:
            a.store("k", b"in a")
            ab.store("k", b"in ab")
            deep.store("k", b"in a/b")
            assert snapshot(a) == {"b/k": b"in a/b", "k": b"in a"}
            assert snapshot(ab) == {"k": b"in ab"}
            assert snapshot(deep) == {"k": b"in a/b"}
            assert snapshot(peer) == {"a/b/k": b"in a/b", "a/k": b"in a", "ab/k": b"in ab"}
            assert a.delete_range(prefix="") == 2
            assert snapshot(peer) == {"ab/k": b"in ab"}

    @rule("namespace.relative")
    def test_everything_is_relative(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Keys in results, ranges, transactions and errors are those of the view."""
        view = store.namespace("deep/down")
        view.store("b", b"1")
        assert view.get("b").key == "b"  # type: ignore[union-attr]
        assert [entry.key for entry in view.range("a", "c")] == ["b"]
        done = view.txn([kvi.Key("b").value == b"1"], [kvi.Put("c", b"2"), kvi.Get("c")])
        assert done.results[1].key == "c"  # type: ignore[union-attr]
        assert not view.txn([kvi.Key("c").absent], [], [kvi.Put("b", b"4"), kvi.Delete("x")])
        assert view.tas("c", b"2", b"3")
        assert view.count() == 2
        (last,) = view.range(prefix="", limit=1, reverse=True, keys_only=True)
        assert (last.key, last.value) == ("c", None)
        with view.lease(view.capabilities.lease_min_ttl + 10) as lease:
            view.store("d", b"5", lease=lease)
            assert view.get("d").lease == lease.id  # type: ignore[union-attr]
        assert view.get("d") is None
        assert snapshot(peer) == {"deep/down/b": b"4", "deep/down/c": b"3"}
        with pytest.raises(kvi.InvalidArgument) as caught:
            view.txn(then=[kvi.Delete("c"), kvi.Delete("c")])
        assert caught.value.key == "c"

    @rule("namespace.relative")
    def test_events_are_relative(self, store: kvi.Kvi) -> None:
        """The state, the events and the entries before them have the view's own keys."""
        store.store("deep/k", b"1")
        with store.namespace("deep") as view, view.watch(prefix="", initial=True) as watch:
            assert watch.next(20).key == "k"
            store.store("deeper/k", b"outside")
            store.store("deep/k", b"2")
            event = watch.next(20)
            assert (event.key, event.value) == ("k", b"2")
            assert event.previous is None or event.previous.key == "k"
            store.delete("deep/k")
            assert watch.next(20).key == "k"

    @rule("namespace.apart")
    def test_folder_mark_is_no_key(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A key that equals the namespace's prefix belongs to the parent, not to the view."""
        store.store("a/", b"mark")
        store.store("a/k", b"v")
        view = store.namespace("a")
        assert snapshot(view) == {"k": b"v"}
        assert view.count() == 1
        assert view.delete_range(prefix="") == 1
        assert snapshot(peer) == {"a/": b"mark"}

    @rule("namespace.nested")
    def test_namespaces_nest(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A namespace of a namespace is the joined one."""
        store.namespace("a").namespace("b").store("k", b"v")
        assert snapshot(store.namespace("a/b")) == {"k": b"v"}
        assert list(snapshot(peer)) == ["a/b/k"]

    @rule("namespace.closed")
    def test_closing_views(self, store: kvi.Kvi, kvi_uri: str) -> None:
        """Closing a view leaves its parent open; closing the parent closes its views."""
        view = store.namespace("a")
        view.close()
        assert view.closed
        assert not store.closed
        with pytest.raises(kvi.Closed):
            view.get("k")
        store.ping()
        parent = kvi.open(kvi_uri)
        view = parent.namespace("a").namespace("b")
        parent.close()
        assert view.closed
        with pytest.raises(kvi.Closed):
            view.get("k")

    @rule("namespace.names")
    @pytest.mark.parametrize("name", ["", "/a", "a/", "/", "\ud800", 7, None], ids=repr)
    def test_bad_name(self, store: kvi.Kvi, name: str) -> None:
        """A name that is empty, no text, or has a slash at an end is InvalidOption."""
        with pytest.raises(kvi.InvalidOption, match="namespace"):
            store.namespace(name)

    @rule("namespace.names")
    def test_name_of_odd_text(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A namespace may be any text; its end is found on the right byte."""
        for name in ("ü", "..", "a//b", "\x7f", "\0", "\U0010ffff", "p%41"):
            view = store.namespace(name)
            view.store("k", name)
            assert snapshot(view) == {"k": name.encode()}
            assert view.count() == 1
            assert list(snapshot(peer)) == [f"{name}/k"]
            assert view.delete_range(prefix="") == 1

    @rule("namespace.names")
    def test_longest_key_shrinks(self, store: kvi.Kvi) -> None:
        """The name counts into max_key, and must leave 4,096 bytes."""
        limit = store.capabilities.max_key
        if limit is None:
            assert store.namespace("n" * 100_000).capabilities.max_key is None
            return
        assert store.namespace("abc").capabilities.max_key == limit - 4
        with pytest.raises(kvi.InvalidOption, match="shorten"):
            store.namespace("n" * (limit - 4096))
