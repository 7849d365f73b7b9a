"""The etcd store, against the bare gRPC stub, ``etcd3`` 0.12 and ``etcd3gw``.

The floor is ``channel.unary_unary`` on messages made from kvi's own ``wire.proto``, over a channel
with default options, without a time-out, errors left as they are: the least that can ask etcd.
``etcd3`` cannot be imported beside a present protobuf; it runs on the stubs that kvi's plugin
stands in for its own, over a default channel of its own.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import grpc
import kvi
from kvi_etcd import wire_pb2 as pb

from benchmarks.machine import address, installed
from benchmarks.measure import (
    AGAIN,
    FLOOR,
    KVI,
    QUICK,
    Comparison,
    Effort,
    Run,
    calls,
    compare,
    threads,
)
from benchmarks.report import Row, Target, at_most

_KEY, _VALUE = "benchmark/single", b"2500"
_PREFIX = "benchmark/many/"
_MANY_VALUE = bytes(range(256)) * 4
_THREADS = 32
_TOGETHER = 128  # keys: etcd's --max-txn-ops
_PAGE = 3000  # entries of 1 KB, near the most that a default channel can receive, is the fastest
_GROWTH = 60_000_000
_COMMITTED = 0.3  # seconds in which etcd has committed what was written
_BATCH = 128  # operations: etcd's default --max-txn-ops


class Stub:
    """The floor: bare calls, nothing around them."""

    def __init__(self, uri: str, options: Sequence[tuple[str, object]] = ()) -> None:
        host, port = address(uri)
        self._channel = grpc.insecure_channel(f"{host}:{port}", options)
        self._range: Callable[[pb.RangeRequest], pb.RangeResponse] = self._method(
            "Range", pb.RangeRequest, pb.RangeResponse
        )
        self._put: Callable[[pb.PutRequest], pb.PutResponse] = self._method(
            "Put", pb.PutRequest, pb.PutResponse
        )
        self._txn: Callable[[pb.TxnRequest], pb.TxnResponse] = self._method(
            "Txn", pb.TxnRequest, pb.TxnResponse
        )
        self._grant: Callable[[pb.LeaseGrantRequest], pb.LeaseGrantResponse] = self._method(
            "LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse, "Lease"
        )
        self._revoke: Callable[[pb.LeaseRevokeRequest], object] = self._method(
            "LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse, "Lease"
        )
        self._watch = self._channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )

    def get(self, key: str) -> bytes:
        return self._range(pb.RangeRequest(key=key.encode())).kvs[0].value

    def store(self, key: str, value: bytes) -> int:
        return self._put(pb.PutRequest(key=key.encode(), value=value)).header.revision

    def read_all(self, prefix: str) -> int:
        """Page through a prefix at one revision; the bytes of keys and values."""
        low, high = prefix.encode(), prefix[:-1].encode() + bytes([ord(prefix[-1]) + 1])
        size, revision, more = 0, 0, True
        while more:
            request = pb.RangeRequest(key=low, range_end=high, limit=_PAGE, revision=revision)
            answer = self._range(request)
            for entry in answer.kvs:
                low = entry.key
                size += len(low) + len(entry.value)
            low += b"\0"
            revision, more = answer.header.revision, answer.more
        return size

    def fill(self, prefix: str, number: int, value: bytes = _MANY_VALUE) -> None:
        """Store ``number`` entries, and let the server settle."""
        for first in range(0, number, _BATCH):
            names = range(first, min(first + _BATCH, number))
            puts = (pb.PutRequest(key=f"{prefix}{name:08}".encode(), value=value) for name in names)
            self._txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts]))
        self.settle()

    def grant(self, ttl: int) -> int:
        return self._grant(pb.LeaseGrantRequest(TTL=ttl)).ID

    def revoke(self, lease: int) -> None:
        self._revoke(pb.LeaseRevokeRequest(ID=lease))

    def settle(self) -> None:
        """Let the server forget how much was written at once.

        For every read of every client etcd 3.4 copies its buffer of what is not committed, which
        stays as large as it ever was until a commit without any key. After a great many writes that
        takes longer than all the rest.
        """
        for _ in range(2):
            time.sleep(_COMMITTED)
            self.revoke(self.grant(60))
        time.sleep(_COMMITTED)

    def watch(self, *keys: bytes, end: bytes = b"", start: int = 0, previous: bool = False) -> Any:
        """A stream of changes from ``start`` on, or from now; returns once the server knows."""
        creates = (
            pb.WatchCreateRequest(key=key, range_end=end, start_revision=start, prev_kv=previous)
            for key in keys
        )
        answers = self._watch(pb.WatchRequest(create_request=create) for create in creates)
        for _ in keys:
            next(answers)
        return answers

    def close(self) -> None:
        self._channel.close()

    def _method(self, name: str, request: Any, answer: Any, service: str = "KV") -> Any:
        return self._channel.unary_unary(
            f"/etcdserverpb.{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )


def rows(effort: Effort, uri: str) -> Iterator[Row]:
    """Get and store by one and many threads, and a range of many entries."""
    with kvi.open(uri) as store, closing(Stub(uri)) as floor:
        store.store(_KEY, _VALUE)
        peers = list(_peers(uri))
        for case, ours, bare, arguments in (
            ("get", store.get, floor.get, (_KEY,)),
            ("store", store.store, floor.store, (_KEY, _VALUE)),
        ):
            runs: dict[str, Run] = {FLOOR: calls(bare, *arguments), KVI: calls(ours, *arguments)}
            for name, get, put in peers:
                runs[name] = calls(get if case == "get" else put, *arguments)
            compared = compare(effort, runs)
            yield Row("etcd", f"{case}, 1 thread", compared, (at_most(compared, 1.05),))
            runs = {
                FLOOR: threads(_THREADS, bare, *arguments),
                KVI: threads(_THREADS, ours, *arguments),
            }
            runs |= {
                name: threads(_THREADS, get if case == "get" else put, *arguments)
                for name, get, put in peers
                if name == "etcd3"  # etcd3gw shares one session, which is not made for threads
            }
            compared = compare(Effort(effort.rounds, effort.turn * 4), runs)
            yield Row("etcd", f"{case}, {_THREADS} threads", compared, (at_most(compared, 1.08),))
        try:
            yield from _wrapped(effort, store)
            yield _import(effort, store, floor)
            yield _range(effort, uri, store, floor)
        finally:
            store.delete_range(prefix="benchmark/", timeout=60)
            floor.settle()


def _wrapped(effort: Effort, store: kvi.Kvi) -> Iterator[Row]:
    """What `Backend` adds to the same handle; the floor is the handle without it."""
    backend = kvi.Backend(store)
    for case, bare, wrapped in (
        ("get", calls(store.get, _KEY), calls(backend.get, _KEY)),
        ("store", calls(store.store, _KEY, _VALUE), calls(backend.store, _KEY, _VALUE)),
    ):
        compared = compare(effort, {FLOOR: bare, KVI: wrapped})
        yield Row("etcd", f"{case} through Backend", compared, (at_most(compared, 1.05),))


def _import(effort: Effort, store: kvi.Kvi, floor: Stub) -> Row:
    """What a key costs in transactions as large as etcd takes; the floor stores one at a time."""
    puts = [kvi.Put(f"benchmark/import/{number:03}", _VALUE) for number in range(_TOGETHER)]

    def fill(number: int) -> float:
        return calls(store.txn, (), puts)(max(1, round(number / _TOGETHER))) * (
            number / (max(1, round(number / _TOGETHER)) * _TOGETHER)
        )

    compared = compare(effort, {FLOOR: calls(floor.store, _KEY, _VALUE), KVI: fill})
    return Row("etcd", "import, a key", compared, (at_most(compared, 0.1),))


def _peers(uri: str) -> Iterator[tuple[str, Callable[..., object], Callable[..., object]]]:
    host, port = address(uri)
    client = etcd3_client(uri)
    yield "etcd3", client.get, client.put
    if (etcd3gw := installed("etcd3gw")) is not None:
        gateway = etcd3gw.client(host=host, port=port, api_path="/v3/")
        yield "etcd3gw", gateway.get, gateway.put


def etcd3_client(uri: str) -> Any:
    """An ``etcd3`` client with its own default channel."""
    with kvi.open(uri) as store:
        assert store.client is not None  # its stubs stand in for etcd3's from now on
    host, port = address(uri)
    return importlib.import_module("etcd3").client(host=host, port=port)


def read_all(store: kvi.Kvi, prefix: str) -> int:
    """As `Stub.read_all`, by kvi."""
    return sum(len(entry.key) + len(entry.value or b"") for entry in store.range(prefix=prefix))


def _range(effort: Effort, uri: str, store: kvi.Kvi, floor: Stub) -> Row:
    number = 10_000 if effort is QUICK else 100_000
    floor.fill(_PREFIX, number)
    if read_all(store, _PREFIX) != floor.read_all(_PREFIX):
        raise SystemExit("kvi and the bare stub read different ranges")
    compared = compare(
        effort.few(),
        {FLOOR: calls(floor.read_all, _PREFIX), KVI: calls(read_all, store, _PREFIX)},
    )
    samples = dict(compared.samples)
    growth = {name: _growth(name, uri) for name in (FLOOR, KVI, "etcd3", "etcd3gw")}
    notes = ", ".join(f"{name} {told}" for name, (told, _) in growth.items() if name != KVI)
    told, grown = growth[KVI]
    memory = Target(
        f"< {_GROWTH // 1_000_000} MB growth", told, None if grown is None else grown < _GROWTH
    )
    return Row(
        "etcd",
        f"range of {number:,} × 1 KB",
        Comparison({name: samples[name] for name in (FLOOR, KVI, AGAIN)}),
        (at_most(compared, 1), memory),
        remark=f"growth: {notes}",
    )


def _growth(name: str, uri: str) -> tuple[str, int | None]:
    """How much memory reading the whole range takes at its peak, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", name, uri, _PREFIX],
        stdout=subprocess.PIPE,
        check=True,
    )
    told = json.loads(done.stdout)
    if told["error"]:
        return str(told["error"]), None
    return f"{told['growth'] / 1e6:.0f} MB", int(told["growth"])
