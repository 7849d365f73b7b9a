"""The memory store, against a dict and a sorted dict under a lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import kvi
from sortedcontainers import SortedDict

from benchmarks.machine import installed
from benchmarks.measure import FLOOR, KVI, QUICK, Comparison, Effort, Run, calls, compare
from benchmarks.report import Row, Target, at_most

_KEY, _VALUE = "service/settings/timeout", b"2500"
_SPAN = 100


class Dict:
    """The floor of single keys: a dict under an RLock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        with self._lock:
            return self._entries.get(key)

    def store(self, key: str, value: bytes) -> None:
        with self._lock:
            self._entries[key] = value


class _Sorted:
    """The floor of ranges: a SortedDict under an RLock, copied out."""

    def __init__(self, keys: list[str]) -> None:
        self._lock = threading.RLock()
        self._entries = SortedDict((key, (key, _VALUE)) for key in keys)

    def slice(self, start: str, end: str) -> list[tuple[str, bytes]]:
        with self._lock:
            entries = self._entries
            return [entries[key] for key in entries.irange(start, end, inclusive=(True, False))]


def rows(effort: Effort) -> Iterator[Row]:
    """Get, store, and ranges out of few and many keys."""
    with kvi.open("mem:benchmark") as store:
        yield from _single(effort, store)
    yield from _ranges(effort)


def _single(effort: Effort, store: kvi.Kvi) -> Iterator[Row]:
    floor = Dict()
    floor.store(_KEY, _VALUE)
    store.store(_KEY, _VALUE)
    gets: dict[str, Run] = {FLOOR: calls(floor.get, _KEY), KVI: calls(store.get, _KEY)}
    stores: dict[str, Run] = {
        FLOOR: calls(floor.store, _KEY, _VALUE),
        KVI: calls(store.store, _KEY, _VALUE),
    }
    if (opendal := installed("opendal")) is not None:
        peer = opendal.Operator("memory")
        peer.write(_KEY, _VALUE)
        gets["opendal"] = calls(peer.read, _KEY)
        stores["opendal"] = calls(peer.write, _KEY, _VALUE)
    compared = compare(effort, gets)
    yield Row("memory", "get", compared, (at_most(compared, 2),))
    compared = compare(effort, stores)
    yield Row("memory", "store", compared, (at_most(compared, 6),))


def _ranges(effort: Effort) -> Iterator[Row]:
    few, many = 1_000, 100_000 if effort is QUICK else 1_000_000
    small, small_floor = _filled(few)
    large, large_floor = _filled(many)
    with small, large:
        out_of_few = _bounds(few)
        out_of_many = _bounds(many)
        compared = compare(
            effort,
            {
                FLOOR: calls(large_floor.slice, *out_of_many),
                KVI: calls(_read, large, *out_of_many),
                "kvi, few": calls(_read, small, *out_of_few),
                "floor, few": calls(small_floor.slice, *out_of_few),
            },
        )
        large.delete_range(prefix="")
    of_few = Comparison(
        {
            FLOOR: compared.samples["floor, few"],
            KVI: compared.samples["kvi, few"],
        }
    )
    of_many = Comparison(
        {name: compared.samples[name] for name in compared.samples if "few" not in name}
    )
    growth = compared.ratio(KVI, "kvi, few").median
    yield Row("memory", f"range of {_SPAN} of {few:,}", of_few, (at_most(of_few, 1.5),))
    flat = Target(f"as fast as of {few:,}", f"{growth:.2f}×", growth <= 1.25)
    targets = (at_most(of_many, 1.5), flat)
    yield Row("memory", f"range of {_SPAN} of {many:,}", of_many, targets)


def _filled(size: int) -> tuple[kvi.Kvi, _Sorted]:
    store = kvi.open(f"mem:benchmark-{size}")
    keys = [f"key/{number:08}" for number in range(size)]
    for key in keys:
        store.store(key, _VALUE)
    return store, _Sorted(keys)


def _bounds(size: int) -> tuple[str, str]:
    return f"key/{size // 2:08}", f"key/{size // 2 + _SPAN:08}"


def _read(store: kvi.Kvi, start: str, end: str) -> list[kvi.KeyValue]:
    return list(store.range(start, end))
