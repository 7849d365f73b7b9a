"""Stores by a network that can fail, and what their clients then do wrong."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic, sleep
from typing import Any

import kvi
from kvi.conformance.server import Server
from kvi.errors import Compacted, OutcomeUnknown, Timeout, Unavailable
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.model import Claim, EventType, KeyValue, Txn, TxnResult
from kvi_memory.state import state_of

from tests.conformance.broken.correct import Correct, Passing, broken, notes_of

PRIMITIVES = (
    *("_get", "_range", "_count", "_put", "_delete", "_delete_range", "_txn", "_watch"),
    *("_lease_grant", "_lease_renew", "_lease_revoke", "_ping"),
)

AWAY = "away"


class Network(Server):
    """The network between a store and those who open it as ``far:NAME``."""

    def __init__(self, uri: str) -> None:
        self.name = uri.partition(":")[2]
        self.notes = notes_of(f"broken {self.name}")

    @property
    def uri(self) -> str:
        """By way of the network."""
        return f"far:{self.name}"

    @property
    def direct_uri(self) -> str:
        """Past the network."""
        return f"broken:{self.name}"

    def isolate(self) -> None:
        """Let no call through, and no answer."""
        self.notes[AWAY] = True

    def rejoin(self) -> None:
        """End that."""
        self.notes[AWAY] = False
        self.notes["returned"] = True
        self.notes["outages"] = self.notes.get("outages", 0) + 1

    def stop(self) -> None:
        """End the server; a store of this process cannot lose its data by that."""
        self.isolate()

    def start(self) -> None:
        """Start it again."""
        self.notes["starts"] = self.notes.get("starts", 0) + 1
        self.rejoin()

    def hold_back(self) -> None:
        """Keep the next transaction."""
        self.notes["held back"] = []

    def deliver(self) -> None:
        """Run it now; whatever comes of it, nobody waits for that."""
        for late in self.notes.pop("held back", []):
            with suppress(kvi.KviError):
                late()

    def slow(self, seconds: float) -> None:
        """Keep every answer back for so long."""
        self.notes["slow"] = seconds

    def silence(self) -> None:
        """Let nothing come by the connections that there are."""
        self.notes["silences"] = self.notes.get("silences", 0) + 1

    def forget(self) -> None:
        """Drop the history."""
        state = state_of(f"broken {self.name}")
        with state.lock:
            state.history.clear()
        with kvi.open(self.direct_uri) as store:
            store.store("forget", b"")


class Far(Correct):
    """A store whose calls get no answer while the network is away, and wait for it on threads."""

    scheme = "far"
    in_place = frozenset()

    class feed(Passing):
        store: Far

        def poll(self, timeout: float) -> Batch | None:
            if self.store.apart():
                raise Unavailable("the network is away")
            return super().poll(timeout)

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self.by_network = uri.startswith("far:")
        for primitive in PRIMITIVES:
            setattr(self, primitive, self._sent(getattr(self, primitive)))

    closed = False

    def _close(self) -> None:
        self.closed = True

    def apart(self) -> bool:
        """Whether the store cannot be reached."""
        return self.by_network and bool(self.notes.get(AWAY))

    def unanswered(self, call: Callable[..., Any], *args: Any) -> Any:
        """Wait for the network until the time, the call's last argument, is up."""
        deadline = monotonic() + args[-1]
        while self.apart():
            if self.closed or monotonic() > deadline:
                raise Timeout("no answer came in time")
            sleep(0.005)
        return call(*args)

    def _sent(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def sent(*args: Any) -> Any:
            if self.apart():
                return self.unanswered(call, *args)
            result = call(*args)
            if self.by_network and self.notes.get("slow"):
                sleep(self.notes["slow"])
            return result

        return sent

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        if self.by_network and self.notes.get("held back") == []:
            self.notes["held back"].append(partial(super()._txn, txn, timeout))
            raise OutcomeUnknown("the connection was lost")
        return super()._txn(txn, timeout)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        feed = super()._watch(spec, wake, timeout)
        assert isinstance(feed, Far.feed)
        feed.store = self
        return feed


@broken("handle.open")
class OpeningAsks(Far):
    """A store that is away cannot be opened."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        if self.apart():
            raise Unavailable("the network is away")


@broken("handle.timeout", "error.typed")
class WaitsForTheStore(Far):
    """A call takes seconds more than its time-out."""

    def unanswered(self, call: Callable[..., Any], *args: Any) -> Any:
        return super().unanswered(call, *args[:-1], args[-1] + 4)


@broken("error.typed")
class NativeErrors(Far):
    """What is the matter is told by an error of the client that is used inside."""

    def unanswered(self, call: Callable[..., Any], *args: Any) -> Any:
        raise ConnectionResetError("connection reset by peer")


@broken("error.typed")
class DoubtsItsReads(Far):
    """A transaction of reads whose answer is lost is told as one that may have been done."""

    def unanswered(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return super().unanswered(call, *args)
        except Timeout as error:
            if isinstance(args[0], Txn):
                raise OutcomeUnknown("the answer was lost") from error
            raise


@broken("error.certain")
class DeniesWhatItDid(Far):
    """A write whose answer is lost is told as surely not applied."""

    def unanswered(self, call: Callable[..., Any], *args: Any) -> Any:
        call(*args)
        return super().unanswered(call, *args)


@broken("error.recovers")
class NeverRecovers(Far):
    """A handle that once got no answer gets none any more."""

    lost = False

    def unanswered(self, call: Callable[..., Any], *args: Any) -> Any:
        self.lost = True
        return super().unanswered(call, *args)

    def apart(self) -> bool:
        if self.lost and not super().apart():
            raise Unavailable("the connection is lost")
        return super().apart()


@broken("error.acknowledged")
class ForgetsAWrite(Far):
    """The first write after a fault is acknowledged, and lost."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        if self.notes.pop("returned", False):
            with self._state.lock:
                self._state.commit(())
                return self._state.revision
        return super()._put(key, value, lease, timeout)


@broken("lease.alive")
class CountsFromALateAnswer(Far):
    """A renewal whose answer comes late tells a longer ttl, as if it counted from the answer."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        renew = self._lease_renew

        def counting(lease: int, timeout: float) -> float:
            sent = monotonic()
            ttl = renew(lease, timeout)
            took = monotonic() - sent
            return ttl + took if took > 0.5 else ttl

        self._lease_renew = counting  # type: ignore[method-assign]


@broken("watch.survives")
class WaitsForTheSilent(Far):
    """A watch whose connection has gone silent waits for it for ever."""

    class feed(Far.feed):
        silences: int | None = None

        def poll(self, timeout: float) -> Batch | None:
            now = self.store.notes.get("silences", 0)
            if self.silences is None:
                self.silences = now
            batch = super().poll(timeout)
            silent = self.silences != self.store.notes.get("silences", 0)
            return None if silent else batch


@broken("lock.late-claim", "lock.no-ghost")
class ClaimsAgain(Far):
    """A claim without an answer is sent again, and nobody told of the first one."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        try:
            return super()._lock_claim(name, lease, timeout)
        except OutcomeUnknown:
            return super()._lock_claim(name, lease, timeout)


@broken("lock.fence")
class FenceSinceTheStart(Far):
    """Fences are counted since the server was started."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        claim = super()._lock_claim(name, lease, timeout)
        began = self.notes.setdefault(("began", self.notes.get("starts")), claim.fence)
        return claim._replace(fence=claim.fence - began + 1)


@broken("watch.survives")
class StartsOver(Far):
    """A watch misses what changed while the store was away."""

    class feed(Far.feed):
        outages = 0

        def change(self, batch: Batch) -> Batch:
            before, self.outages = self.outages, self.store.notes.get("outages", 0)
            return batch if before == self.outages else Batch((), batch.revision)


@broken("watch.resync")
class GoesQuiet(Far):
    """A watch whose history is gone says nothing of it."""

    class feed(Far.feed):
        def change(self, batch: Batch) -> Batch:
            told = [event for event in batch.events if event.type is not EventType.RESYNC]
            return Batch(told, batch.revision)


@broken("watch.compacted")
class StartsWithWhatIsLeft(Far):
    """A watch from a revision that is gone begins with the first one that is there."""

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        try:
            return super()._watch(spec, wake, timeout)
        except Compacted:
            return super()._watch(WatchSpec(spec.span), wake, timeout)


@broken("asyncio.free-loop")
class WaitsInTheLoop(Far):
    """A task's call to a store that is away holds the loop until its time is up."""

    in_place = frozenset({"get"})


@broken("get.linearizable")
class TellsWhatItRemembers(Far):
    """While the store is away, a key is what it was when the handle read it last."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self.remembered: dict[str, KeyValue | None] = {}

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        self.remembered[key] = found = super()._get(key, timeout)
        return found

    def unanswered(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return super().unanswered(call, *args)
        except Timeout:
            if args[0] not in self.remembered:
                raise
            return self.remembered[args[0]]


@broken("error.certain")
class SendsAgain(Far):
    """A write without an answer is sent again, and nobody told of the first one."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        try:
            return super()._txn(txn, timeout)
        except OutcomeUnknown:
            return super()._txn(txn, timeout)


@broken("lease.not-late")
class StaysAfterARestart(Far):
    """A lease that nobody renews after the store was away does not end."""

    def unanswered(self, call: Callable[..., Any], *args: Any) -> Any:
        with self._state.lock:
            for lease in self._state._leases.values():
                lease.deadline += 1000
        return super().unanswered(call, *args)
