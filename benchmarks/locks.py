"""Locks on etcd: taken and given back where nobody else wants them, and handed to one who waits.

The floor of taking and giving back is the two transactions alone: put the key and read the queue,
delete the key, under a lease that was granted once. ``etcd3`` and ``tooz`` (over ``etcd3gw``) grant
a lease each time, and leave it behind; those are revoked outside of the time.

A hand-over lasts from the beginning of `release` to the end of the waiter's `acquire`, on another
handle of this process. Its floor is one round trip, the transaction of a claim, after the pause in
which the waiter comes to wait: what was idle is slower. Beside it stands a hand-over by bare calls
and a bare stream. The requests that kvi's takes are counted by the server.

The other stores stand beside them for information; their floor is two writes of the store's own.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import kvi
from kvi_etcd import wire_pb2 as pb

from benchmarks.consul import Http
from benchmarks.etcd import Stub, etcd3_client
from benchmarks.machine import address, handled, installed
from benchmarks.measure import FLOOR, KVI, Effort, Run, calls, compare
from benchmarks.memory import Dict
from benchmarks.report import Row, Target, at_most, faster
from benchmarks.sqlite import Raw

_NAME, _HANDED = "benchmark/lock", "benchmark/handed"
_TTL = 60
_SETTLED = 0.02  # seconds in which a waiter whose claim stands has begun to watch
_COUNTED = 10  # hand-overs of which the requests are counted
_STREAMED = {"Watch", "LeaseKeepAlive"}


class _Bare(Stub):
    """The floor."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._lease = self.grant(_TTL * 60)
        self.key = f"{_NAME}/{self._lease:x}".encode()
        self._low, self._high = f"{_NAME}/".encode(), f"{_NAME}0".encode()

    def claim(self) -> int:
        """Put the key unless it is there, and read the queue; the revision."""
        key, low, high = self.key, self._low, self._high
        queue = pb.RequestOp(request_range=pb.RangeRequest(key=low, range_end=high, keys_only=True))
        put = pb.PutRequest(key=key, lease=self._lease)
        request = pb.TxnRequest(
            compare=[pb.Compare(target=pb.Compare.CREATE, key=key, create_revision=0)],
            success=[pb.RequestOp(request_put=put), queue],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key)), queue],
        )
        return self._txn(request).header.revision

    def release(self, created: int) -> None:
        """Delete the key if it is still the one that was put."""
        key = self.key
        delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        self._txn(
            pb.TxnRequest(
                compare=[pb.Compare(target=pb.Compare.CREATE, key=key, create_revision=created)],
                success=[delete],
            )
        )

    def pair(self) -> None:
        self.release(self.claim())

    def close(self) -> None:
        self.revoke(self._lease)
        super().close()


def rows(effort: Effort, uris: Mapping[str, str]) -> Iterator[Row]:
    """On etcd, then for information on the others."""
    if uri := uris.get("etcd"):
        with closing(_Bare(uri)) as floor:
            yield _uncontended(effort, uri, floor)
            yield _handed_over(effort, uri, floor)
    with tempfile.TemporaryDirectory(prefix="kvi-benchmark-") as folder, ExitStack() as stack:
        raw = stack.enter_context(closing(Raw(Path(folder) / "raw.db")))
        others: dict[str, tuple[str, Callable[[str, bytes], object]]] = {
            "memory": ("mem:benchmark", Dict().store),
            "sqlite": (f"sqlite:{folder}/kvi.db", raw.store),
        }
        if uri := uris.get("consul"):
            http = stack.enter_context(closing(Http(uri)))
            others["consul"] = uri, http.store
        for name, (uri, write) in others.items():
            with kvi.open(uri) as store:
                runs = {FLOOR: calls(_twice, write), KVI: calls(_pair, store)}
                compared = compare(effort, runs)
                store.delete_range(prefix="benchmark/")
            yield Row("locks", f"{name}, lock + unlock", compared, remark="floor: two writes")


def _pair(store: kvi.Kvi) -> None:
    with store.lock(_NAME, ttl=_TTL):
        pass


def _twice(write: Callable[[str, bytes], object]) -> None:
    write(_NAME, b"1")
    write(_NAME, b"2")


def _uncontended(effort: Effort, uri: str, floor: _Bare) -> Row:
    with kvi.open(uri) as store, ExitStack() as stack:
        runs: dict[str, Run] = {FLOOR: calls(floor.pair), KVI: calls(_pair, store)}
        client = etcd3_client(uri)
        runs["etcd3"] = _peer(client.lock("benchmark", ttl=_TTL), lambda lock: lock.lease)
        if (tooz := installed("tooz.coordination")) is not None:
            host, port = address(uri)
            peer = tooz.get_coordinator(f"etcd3+http://{host}:{port}?api_version=v3", b"benchmark")
            peer.start()
            stack.callback(peer.stop)
            lock = peer.get_lock(b"benchmark")
            runs["tooz"] = _peer(lock, lambda lock: lock._lease)
        compared = compare(effort, runs)
        targets = (at_most(compared, 1.2), faster(compared, 2.5, "tooz"))
        return Row("locks", "etcd, lock + unlock", compared, targets)


def _peer(lock: Any, lease_of: Callable[[Any], Any]) -> Run:
    """A peer's lock; the leases that it leaves behind are revoked after every run."""

    def run(number: int) -> float:
        leases = []
        start = time.perf_counter()
        for _ in range(number):
            lock.acquire()
            leases.append(lease_of(lock))
            lock.release()
        took = time.perf_counter() - start
        for lease in leases:
            lease.revoke()
        return took

    return run


def _handed_over(effort: Effort, uri: str, floor: _Bare) -> Row:
    with kvi.open(uri) as giver, kvi.open(uri) as taker, closing(_Bare(uri)) as other:
        few = Effort(effort.rounds, effort.turn / 5)
        runs: dict[str, Run] = {
            FLOOR: _repeated(lambda: _trip(floor)),
            KVI: _repeated(lambda: hand_over(giver, taker)),
            "bare calls": _repeated(lambda: _bare_hand_over(floor, other)),
        }
        compared = compare(few, runs)
        requests: Counter[str] = Counter()
        for _ in range(_COUNTED):
            hand_over(
                giver,
                taker,
                before=lambda: requests.subtract(handled(uri)),
                after=lambda: requests.update(handled(uri)),
            )
    each = {name: count / _COUNTED for name, count in requests.items() if count}
    trips = sum(count for name, count in each.items() if name not in _STREAMED)
    told = ", ".join(f"{count:g} {name}" for name, count in each.items())
    return Row(
        "locks",
        "etcd, handed to a waiter",
        compared,
        (at_most(compared, 3), Target("≤ 3 requests", f"{trips:g}", trips <= 3)),
        remark=f"floor: one round trip; the server received {told}",
    )


def _repeated(measure: Callable[[], float]) -> Run:
    """What takes its own time, of which only a part counts."""
    return lambda number: sum(measure() for _ in range(number))


def _trip(floor: _Bare) -> float:
    """One round trip: a claim that stands is made again, which only looks."""
    created = floor.claim()
    time.sleep(_SETTLED)
    start = time.perf_counter()
    floor.claim()
    took = time.perf_counter() - start
    floor.release(created)
    return took


def _bare_hand_over(giver: _Bare, taker: _Bare) -> float:
    """As `hand_over`, by nothing but the calls that it takes."""
    created, behind = giver.claim(), taker.claim()
    stream = taker.watch(giver.key, start=behind + 1)
    got: SimpleQueue[float] = SimpleQueue()

    def wait() -> None:
        next(stream)
        taker.claim()
        got.put(time.perf_counter())

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(_SETTLED)
    start = time.perf_counter()
    giver.release(created)
    took = got.get() - start
    waiter.join()
    stream.cancel()
    taker.release(behind)
    return took


def hand_over(
    giver: kvi.Kvi,
    taker: kvi.Kvi,
    before: Callable[[], object] = bool,
    after: Callable[[], object] = bool,
) -> float:
    """Let a waiter wait, release, and tell how long it took until it had the lock."""
    held, wanted = (store.lock(_HANDED, ttl=_TTL) for store in (giver, taker))
    held.acquire()
    got: SimpleQueue[float] = SimpleQueue()
    over = threading.Event()

    def wait() -> None:
        with wanted:
            got.put(time.perf_counter())
            over.wait()

    waiter = threading.Thread(target=wait)
    waiter.start()
    while giver.count(prefix=f"{_HANDED}/") < 2:
        time.sleep(0.001)
    time.sleep(_SETTLED)
    before()
    start = time.perf_counter()
    held.release()
    took = got.get() - start
    after()
    over.set()
    waiter.join()
    return took
