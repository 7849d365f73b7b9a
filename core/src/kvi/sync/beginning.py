"""Leases, locks, watches and changes by functions begin here; what they need is imported here.

A face is made by the flow that begins what it stands for, so that no interrupt comes between the
two: what nobody gets is given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kvi.arguments import check_watch
from kvi.coroutine import run
from kvi.feed import WatchSpec
from kvi.flow.contest import StoreLock
from kvi.flow.lease import LeaseFlow, store_for
from kvi.flow.lock import LockFlow
from kvi.flow.update import atomically, given, update
from kvi.flow.watch import WatchFlow
from kvi.model import KeyValue, Span
from kvi.ops import PutOp
from kvi.policy.lease import check_key_ttl, check_ttl
from kvi.policy.lock import check_lock, check_wait
from kvi.port import Port
from kvi.sync.face import Face
from kvi.sync.lease import Lease
from kvi.sync.lock import Lock
from kvi.sync.temp_key import TempKey
from kvi.sync.update import ThreadCaller, Tx
from kvi.sync.watch import Watch

T = TypeVar("T")


class Beginning:
    """What the methods of `kvi.Kvi` do after their first use; arguments are checked here."""

    @staticmethod
    def lease(store: Face, ttl: float, *, keep_alive: bool, timeout: float) -> Lease:
        """See `kvi.Kvi.lease`."""
        scope, asked = store._scope, check_ttl(ttl, store.capabilities)

        async def flow(port: Port) -> Lease:
            grant = LeaseFlow.grant(port, scope, asked, timeout, keep_alive=keep_alive)
            return Lease(store, await grant)

        return store._drive(flow, undo=Lease._abandon, away=True)

    @staticmethod
    def store_for(store: Face, op: PutOp, ttl: float, lease: object, timeout: float) -> int:
        """See `kvi.Kvi.store`."""
        scope, asked = store._scope, check_key_ttl(ttl, lease, store.capabilities)
        return store._drive(lambda port: store_for(port, scope, op, asked, timeout))

    @staticmethod
    def update(
        store: Face, key: str, fn: Callable[[Any], Any], default: bytes | None, seconds: float
    ) -> KeyValue | None:
        """See `kvi.Kvi.update`."""
        return given(run(update(ThreadCaller(store, "update", key), key, fn, default, seconds)))

    @staticmethod
    def atomically(store: Face, fn: Callable[[Tx], T], seconds: float) -> T:
        """See `kvi.Kvi.atomically`."""
        flow = atomically(ThreadCaller(store, "atomically", None), fn, Tx, seconds)
        return given(run(flow))  # type: ignore[no-any-return]

    @staticmethod
    def temp_key(store: Face, key: str, value: bytes | None, ttl: float, timeout: float) -> TempKey:
        """See `kvi.Kvi.temp_key`."""
        scope, asked = store._scope, check_ttl(ttl, store.capabilities)

        async def flow(port: Port) -> TempKey:
            lease = await LeaseFlow.with_key(port, scope, key, value, asked, timeout)
            return TempKey(key, Lease(store, lease))

        return store._drive(flow, undo=lambda made: made.lease._abandon(), away=True)

    @staticmethod
    def lock(store: Face, name: str, ttl: float, timeout: float | None) -> Lock:
        """See `kvi.Kvi.lock`."""
        limits = store.capabilities
        contest = StoreLock(check_lock(name, limits), limits)
        flow = LockFlow(store._scope, contest, check_ttl(ttl, limits))
        return Lock(store, flow, check_wait(timeout))

    @staticmethod
    def watch(store: Face, span: Span, timeout: float, **how: Any) -> Watch:
        """See `kvi.Kvi.watch`."""
        user_data = how.pop("user_data")
        kinds = check_watch(store.capabilities, **how)
        spec = WatchSpec(span, how["from_revision"], bool(how["initial"]))
        watch = Watch(store, WatchFlow(store._scope, kinds, how["callback"], user_data))

        async def flow(port: Port) -> Watch:
            await watch._flow.begin(port, spec, timeout)
            return watch

        return store._drive(flow, undo=lambda made: made._flow.end(), away=True)
