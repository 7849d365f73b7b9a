"""The Consul store, against bare ``http.client`` and ``python-consul``.

The floor keeps one connection (the library sets TCP_NODELAY on it), reads consistently, as kvi has
to, and takes the entry out of the answer; it writes by a plain PUT, which tells no revision.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import kvi

from benchmarks.machine import address, installed
from benchmarks.measure import FLOOR, KVI, Effort, Run, calls, compare
from benchmarks.report import Row, at_most, faster

_KEY, _VALUE = "benchmark/single", b"2500"
_PREFIX, _ENTRIES = "benchmark/many/", 1_000


class Http:
    """The floor."""

    def __init__(self, uri: str) -> None:
        self._connection = http.client.HTTPConnection(*address(uri))

    def get(self, key: str) -> bytes:
        return base64.b64decode(self._entries(f"/v1/kv/{key}?consistent")[0]["Value"])

    def store(self, key: str, value: bytes) -> None:
        self._ask("PUT", f"/v1/kv/{key}", value)

    def range(self, prefix: str) -> list[tuple[str, bytes]]:
        return [
            (entry["Key"], base64.b64decode(entry["Value"]))
            for entry in self._entries(f"/v1/kv/{prefix}?recurse&consistent")
        ]

    def close(self) -> None:
        self._connection.close()

    def _entries(self, path: str) -> Any:
        return json.loads(self._ask("GET", path))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise SystemExit(f"Consul answered {answer.status} to {method} {path}")
        return data


def rows(effort: Effort, uri: str) -> Iterator[Row]:
    """Get, store, and a range."""
    with kvi.open(uri) as store, closing(Http(uri)) as floor:
        store.store(_KEY, _VALUE)
        for number in range(_ENTRIES):
            floor.store(f"{_PREFIX}{number:04}", _VALUE)
        gets: dict[str, Run] = {FLOOR: calls(floor.get, _KEY), KVI: calls(store.get, _KEY)}
        puts: dict[str, Run] = {
            FLOOR: calls(floor.store, _KEY, _VALUE),
            KVI: calls(store.store, _KEY, _VALUE),
        }
        if (consul := installed("consul")) is not None:
            peer = consul.Consul(*address(uri), consistency="consistent").kv
            gets["python-consul"] = calls(peer.get, _KEY)
            puts["python-consul"] = calls(peer.put, _KEY, _VALUE)
        try:
            compared = compare(effort, gets)
            targets = (at_most(compared, 1), faster(compared, 4, "python-consul"))
            yield Row("consul", "get", compared, targets)
            compared = compare(effort, puts)
            targets = (at_most(compared, 1), faster(compared, 4, "python-consul"))
            yield Row("consul", "store", compared, targets)
            compared = compare(
                effort, {FLOOR: calls(floor.range, _PREFIX), KVI: calls(_read, store)}
            )
            yield Row("consul", f"range of {_ENTRIES:,}", compared)
        finally:
            store.delete_range(prefix="benchmark/")


def _read(store: kvi.Kvi) -> list[kvi.KeyValue]:
    return list(store.range(prefix=_PREFIX))
