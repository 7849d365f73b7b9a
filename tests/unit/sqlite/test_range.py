"""Ranges: one revision whatever others do, bounded memory, nothing left behind."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import tracemalloc
from pathlib import Path

import kvi
import pytest
from kvi import Put, clock
from kvi.model import Scan, Span
from kvi_sqlite.snapshot import FEW, PAGE_BYTES, PAGE_ROWS

from tests.support.inside import inmost
from tests.unit.sqlite.workers import until


def fill(store: kvi.Kvi, size: int, value: str = "0") -> list[str]:
    keys = [f"{number:06d}" for number in range(size)]
    for part in range(0, size, 10_000):
        store.txn(then=[Put(key, value) for key in keys[part : part + 10_000]], timeout=60)
    return keys


def pinned(store: kvi.Kvi) -> int:
    """How many connections are kept by snapshots."""
    return sum(c.pinned for c in inmost(store)._pool.live)


@pytest.mark.slow
def test_large_range_stays_at_one_revision(uri: str) -> None:
    """A hundred thousand keys read slowly, while others write, are of the first page's revision."""
    size = 100_000
    with kvi.open(uri, timeout=30) as store:
        keys = fill(store, size)
        stop = threading.Event()

        def change() -> None:
            with kvi.open(uri, timeout=30) as other:
                for turn in itertools.count(1):
                    if stop.is_set():
                        return
                    batch = [Put(keys[n * turn % size], str(turn)) for n in {1, 7, 501, 99_991}]
                    other.txn(then={op.key: op for op in batch}.values())
                    other.delete(keys[turn * 31 % size])
                    other.store(f"new/{turn}", "x")

        writers = [threading.Thread(target=change) for _ in range(2)]
        for writer in writers:
            writer.start()
        try:
            results = [store.range(), store.range(reverse=True, keys_only=True)]
            ended = []
            for result in (*results, results[0]):
                got = list(result)
                revision = result.revision
                assert revision is not None
                assert max(entry.revision for entry in got) <= revision
                ended.append([entry.key for entry in got])
            assert ended[0] == ended[2]
            assert ended[0] == sorted(ended[0])
            before = results[0].revision
            assert before is not None
            until(lambda: (store.range(limit=1).revision or 0) > before + 20, "others write")
            assert [entry.key for entry in results[0]] == ended[0]
        finally:
            stop.set()
            for writer in writers:
                writer.join()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [1, PAGE_ROWS - 1, PAGE_ROWS, PAGE_ROWS + 1, 2 * PAGE_ROWS, None])
def test_pages_join_seamlessly(store: kvi.Kvi, reverse: bool, limit: int | None) -> None:
    """Every key comes once, in order, whatever the limit and the direction."""
    keys = fill(store, 2 * PAGE_ROWS + 3)
    expected = (keys[::-1] if reverse else keys)[:limit]
    result = store.range(limit=limit, reverse=reverse)
    assert [entry.key for entry in result] == expected
    assert [entry.key for entry in result] == expected


def test_passes_are_independent(store: kvi.Kvi) -> None:
    """Several iterators of one result, in several threads, each see everything."""
    keys = fill(store, 3 * PAGE_ROWS)
    result = store.range()
    both = list(zip(result, result, strict=True))
    assert [one.key for one, _ in both] == keys
    assert all(one == two for one, two in both)
    seen: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: seen.append([e.key for e in result])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [keys] * 4


def test_memory_is_bounded_in_bytes(store: kvi.Kvi) -> None:
    """A range over big values holds a page of them, not all."""
    value = b"v" * (PAGE_BYTES // 4)
    for number in range(64):
        store.store(str(number), value)
    tracemalloc.start()
    try:
        assert sum(len(entry.value or b"") for entry in store.range()) == 64 * len(value)
        assert tracemalloc.get_traced_memory()[1] < 5 * PAGE_BYTES
    finally:
        tracemalloc.stop()


def test_keys_only_reads_no_values(store: kvi.Kvi) -> None:
    """With keys_only a page is as long as its keys allow, whatever the values."""
    for number in range(16):
        store.store(str(number), b"v" * PAGE_BYTES)
    result = store.range(keys_only=True)
    assert pinned(store) == 0
    assert {entry.value for entry in result} == {None}


@pytest.mark.slow
def test_snapshot_ends_with_its_result(store: kvi.Kvi) -> None:
    """The snapshot lives as long as the result or a pass, read to the end or not, and no longer."""
    fill(store, 3 * PAGE_ROWS)
    result = store.range()
    assert pinned(store) == 1
    list(result)
    assert pinned(store) == 1
    iterator = iter(result)
    next(iterator)
    del result
    gc.collect()
    assert pinned(store) == 1
    del iterator
    gc.collect()
    until(lambda: pinned(store) == 0, "what was left is freed by a thread of kvi's")
    connections = len(inmost(store)._pool.live)
    for _ in range(20):
        next(iter(store.range()))
        gc.collect()
        until(lambda: pinned(store) == 0, "what was left is freed by a thread of kvi's")
    assert len(inmost(store)._pool.live) <= connections + 1


def test_small_range_keeps_nothing(store: kvi.Kvi) -> None:
    """A range of one page holds no snapshot, which would keep the WAL from starting over."""
    fill(store, PAGE_ROWS - 1)
    result = store.range()
    assert pinned(store) == 0
    assert len(list(result)) == PAGE_ROWS - 1


def test_closing_ends_ranges(path: Path, uri: str) -> None:
    """Iterating after close raises Closed, and the file is let go."""
    store = kvi.open(uri)
    fill(store, 3 * PAGE_ROWS)
    iterator = iter(store.range())
    next(iterator)
    store.close()
    with pytest.raises(kvi.Closed):
        list(iterator)
    assert not inmost(store)._pool.live
    assert not path.with_name("store.db-wal").exists()


def test_snapshot_does_not_hold_up_writers(store: kvi.Kvi) -> None:
    """Writing goes on while a range is half read."""
    fill(store, 3 * PAGE_ROWS)
    iterator = iter(store.range())
    next(iterator)
    for number in range(100):
        store.store("x", str(number))
    assert sum(1 for _ in iterator) == 3 * PAGE_ROWS - 1


def test_few_entries_are_read_as_many_are(store: kvi.Kvi) -> None:
    """A range with any values is the same whether it is read at once or in pages."""
    values = {f"k{n:03d}": str(n).encode() for n in range(FEW + 2)}
    values |= {"large": b"v" * PAGE_BYTES, "empty": b"", "long" * 5000: b"v"}
    store.txn(then=[Put(key, value) for key, value in values.items()])
    lease = inmost(store)._lease_grant(60, 5).id
    store.store("k000", "0", lease=lease)
    ranges = inmost(store)._ranges
    at_once = 0
    for start, end in ((None, None), ("k001", None), ("k002", "l"), ("l", None), ("x", None)):
        for limit in (None, 1, FEW - 1, FEW, FEW + 1):
            for reverse in (False, True):
                for keys_only in (False, True):
                    found = store.range(
                        start, end, limit=limit, reverse=reverse, keys_only=keys_only
                    )
                    scan = Scan(Span(start or "", end), limit, reverse, keys_only)
                    far = time.monotonic() + 60
                    paged = ranges.read(scan, clock.now(), far, 60)
                    assert found.revision == paged.revision == 2
                    assert list(found) == list(paged) == list(found)
                    at_once += ranges.glance(scan) is not None
    assert at_once > 20
    inmost(store)._lease_revoke(lease, 5)
    assert next(iter(store.range(limit=1))).key == "empty"
    assert [entry.key for entry in store.range("k", limit=1)] == ["k001"]


def test_few_entries_of_a_closed_handle(uri: str) -> None:
    """What was read before the handle was closed is not given out after."""
    with kvi.open(uri) as store:
        store.store("k", "v")
        found = store.range()
        assert len(list(found)) == 1
    with pytest.raises(kvi.Closed):
        list(found)
