"""The entries kept for iterating."""

from __future__ import annotations

import gc
import threading
import warnings

import pytest
from kvi.model import KeyValue
from kvi_consul import pages
from kvi_consul.pages import Pages


def filled(count: int, size: int = 10) -> tuple[Pages, list[KeyValue]]:
    """Pages of so many entries with values of so many bytes."""
    entries = [
        KeyValue(f"k{n:06}", bytes(size), n + 2, n + 1, None, (1 << 127) + n if n % 3 else None)
        for n in range(count)
    ]
    kept = Pages()
    for entry in entries:
        kept.add(entry)
    kept.finish()
    return kept, entries


@pytest.fixture(params=[1 << 30, 5_000, 0], ids=["memory", "both", "file"])
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "IN_MEMORY", request.param)


@pytest.mark.usefixtures("_where")
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_entries_come_back_in_both_orders(count: int) -> None:
    """What was added is iterated, forward and backward and again, wherever it is kept."""
    kept, entries = filled(count)
    for _ in range(2):
        assert [entry for page in kept.read() for entry in page] == entries
        assert [entry for page in kept.read(reverse=True) for entry in page] == entries[::-1]


@pytest.mark.usefixtures("_where")
@pytest.mark.parametrize("limit", [1, 255, 256, 257, 600, 601, 10_000])
def test_limits_cut_either_end(limit: int) -> None:
    """A limit takes the first entries, or in reverse the last ones."""
    kept, entries = filled(600)
    assert [entry for page in kept.read(limit) for entry in page] == entries[:limit]
    backward = [entry for page in kept.read(limit, reverse=True) for entry in page]
    assert backward == entries[::-1][:limit]


def test_a_page_is_small_whatever_the_values_are() -> None:
    """Pages are closed by bytes as well as by entries."""
    kept, _ = filled(100, 100_000)
    assert max(len(page) for page in kept.read()) <= 4


def test_threads_share_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads iterate at once, each in full."""
    monkeypatch.setattr(pages, "IN_MEMORY", 0)
    kept, entries = filled(5000)
    found: list[bool] = []

    def read() -> None:
        found.append([entry for page in kept.read() for entry in page] == entries)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_the_file_goes_with_its_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs to close a range: dropping it closes its file without a warning."""
    monkeypatch.setattr(pages, "IN_MEMORY", 0)
    kept, _ = filled(1000)
    reader = kept.read()
    next(reader)
    del kept
    assert sum(map(len, reader)) == 1000 - pages.PAGE_ENTRIES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del reader
        gc.collect()
