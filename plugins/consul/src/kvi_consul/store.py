"""`ConsulKvi`: a handle on the KV store behind one Consul agent.

Point operations are one ``PUT /v1/txn`` each, with ``?consistent``, so that reads are linearizable;
transactions are planned by `kvi_consul.plan`, and this module sends the plans and waits between
them. Prefix reads are one answer of any size, parsed as it comes and kept by `kvi_consul.pages`.

*Permanent keys.* Consul's ``set`` and ``cas`` leave a key's session on it, so that the key would
still vanish with that session. The answer to a write shows such a session, and `_free` then ends
its hold in a second transaction, on the condition that the key is still the one that was written.
Until then the call has not returned, and if its time runs out, the fate of the write is unknown.

Leases and locks are Consul's sessions (`kvi_consul.sessions`), watches are looks at prefixes that
many share (`kvi_consul.watches`).
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, suppress
from queue import SimpleQueue
from time import monotonic
from typing import Any
from urllib.parse import quote

from kvi.capabilities import Capabilities
from kvi.errors import (
    Contention,
    KviError,
    OutcomeUnknown,
    PermissionDenied,
    Unavailable,
    ValueTooLarge,
)
from kvi.feed import Feed, Wake, WatchSpec
from kvi.late import imported
from kvi.model import (
    Claim,
    Grant,
    KeyValue,
    LeaseInfo,
    Put,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.policy.interest import only_key
from kvi.policy.lock import single_key
from kvi.primitives import Primitives

from kvi_consul import errors, sessions, wire
from kvi_consul.errors import Broken, Refusal
from kvi_consul.pages import Pages
from kvi_consul.plan import Held, Hidden, Planner
from kvi_consul.transport import Answer, Transport
from kvi_consul.watches import ConsulFeed, Watches
from kvi_consul.wire import Op

_MAX_KEY = 8192
_SHORT = 16 * 1024  # bytes of a value that the main thread sends itself
CAPABILITIES = Capabilities(
    shared=True,
    durable=True,
    watch_history=False,
    snapshot_range=False,
    atomic_range=True,  # a prefix comes as one answer
    lock_fair=False,
    key_version=False,
    atomic_range_delete="prefix",
    lease_min_ttl=10,
    lease_max_ttl=86_400,
    lease_expiry_factor=2,
    lock_delay_factor=sessions.DELAY_FACTOR,
    max_txn_ops=wire.MAX_OPS,
    txn_delete_ops=2,
    # Together, in Base64 and with the key named twice (a check and a write), they fit the
    # server's 512 KiB for one transaction.
    max_key=_MAX_KEY,
    max_value=380_000,
)

# What taking apart an answer raises if it is not what Consul says.
_BAD = (ValueError, KeyError, TypeError, AttributeError)
_BACKOFF = 0.001  # seconds before the second try of a transaction; doubled for each further one
_MOST_BACKOFF = 0.05
_TOMBSTONES = wire.MAX_OPS // 3  # made at once: each takes a check, a write and a deletion
_DELAY_BACKOFF = 0.25  # a lock-delay lasts for seconds
# Seconds between the questions whether a token is really unknown: a server that has just begun to
# lead may say so of any. Nothing was done then.
_DOUBTS = (0.05, 0.2, 0.5)


class _Deleted:
    """The keys of a deleted tree: their number, and those that are to leave a tombstone.

    The first keys stand for themselves, so that every prefix of one is told; then the first key of
    each folder. Who watches half a name in a large tree may wait.
    """

    def __init__(self) -> None:
        self.count = 0
        self._marks: dict[str, str] = {}

    def add(self, key: str) -> None:
        """One more."""
        self.count += 1
        if len(self._marks) < 3 * _TOMBSTONES:
            name = key if self.count <= _TOMBSTONES else key.rpartition("/")[0]
            self._marks.setdefault(name, key)

    def marks(self) -> list[str]:
        """The keys that are to leave a tombstone."""
        return list(dict.fromkeys(self._marks.values()))


class _Refused(KviError):
    """A streamed transaction was refused because of the state of a key."""


class ConsulKvi(Primitives):
    """A handle on the store of the agent that ``transport`` speaks to."""

    def __init__(
        self, uri: str, transport: Transport, *, dc: str | None = None, timeout: float
    ) -> None:
        self._transport = transport  # first: a fork may come as soon as the handle is known
        super().__init__(uri, CAPABILITIES, timeout=timeout)
        self._dc = dc
        self._client: Any = None
        self._client_lock = threading.Lock()
        where = "" if dc is None else f"dc={quote(dc, safe='')}"
        self._claims: dict[int, str] = {}  # the key that each lock's lease may hold
        self._query = f"consistent&{where}" if where else "consistent"
        self._dc_query = f"?{where}" if where else ""
        self._txn_head = transport.head("PUT", f"/v1/txn?{self._query}")
        self._watches = Watches(transport, self._query, self._state_of, self._reporter())

    def _native(self) -> Any:
        """The client of python-consul, on this handle's connections."""
        with self._client_lock:
            if self._client is None:
                self._client = imported("kvi_consul.client").ConsulClient(
                    self._transport, dc=self._dc, timeout=self.timeout
                )
            return self._client

    def _cancel(self, thread: int) -> None:
        self._transport.cancel(thread)

    # -- what the main thread does itself ---------------------------------------------------------

    def _short_get(self, key: str) -> KeyValue | None:
        """An entry that is there, if an idle connection has it soon."""
        if not self._is_short(key):
            return None
        answer = self._transport.stroke(
            self._txn_head, wire.encode_get(key), self.timeout, write=False
        )
        if answer is None or answer.status != 200:
            return None
        try:
            (found,) = wire.decode_results(answer.body)
            return wire.entry_of(found)
        except _BAD as error:
            if errors.is_own(error):
                return None
            raise

    def _short_put(self, key: str, value: bytes | str) -> int | None:
        """A small value, if there is an idle connection."""
        if not self._is_short(key):
            return None
        try:
            data = value.encode() if type(value) is str else value
        except UnicodeEncodeError:
            return None
        if type(data) is not bytes or len(data) > _SHORT:
            return None
        deadline, flags = monotonic() + self.timeout, _nonce()
        try:
            answer = self._transport.stroke(
                self._txn_head, wire.encode_set(key, data, flags), self.timeout, write=True
            )
        except Broken as broken:
            where = self._transport.where
            raise errors.of_broken(broken, where, write=True) from broken.__cause__
        if answer is None:
            return None
        if answer.status != 200:
            refused = self._of_status(answer.status, answer.body, write=True)
            if answer.status != 409 and isinstance(refused, OutcomeUnknown):
                raise refused
            return None
        try:
            written = self._written(answer.body)
        except OutcomeUnknown as unknown:
            if (cause := unknown.__cause__) is None or errors.is_own(cause):
                raise
            raise cause from None
        if written.lease is None:
            return written.revision
        held = Held(0, Op("set", key, data, flags=flags), written)
        return _by_another(lambda: self._free(held, deadline))

    def _is_short(self, key: object) -> bool:
        """Whether this is the main thread, which pays for another's doing it, and the key good."""
        if self.forked or threading.get_ident() != threading.main_thread().ident:
            return False
        try:
            return type(key) is str and 0 < len(key.encode()) <= _MAX_KEY
        except UnicodeEncodeError:
            return False

    # -- point operations -------------------------------------------------------------------------

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        kv = self._look(key, monotonic() + timeout)
        return None if kv is None else self._entry(kv, write=False)

    def _look(self, key: str, deadline: float) -> dict[str, Any] | None:
        """What Consul tells of a key, or ``None`` if it is not there."""
        status, body = self._send(wire.encode_get(key), deadline, write=False)
        if status == 409:
            self._missing(body)
            return None
        results = self._results(body, write=False)
        if not results:
            raise errors.of_hidden(write=False)
        return results[0]

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        if lease is not None:
            revision = self._txn(Txn(then=(Put(key, value, lease),)), timeout).revision
            assert revision is not None  # a transaction that puts has one
            return revision
        deadline = monotonic() + timeout
        flags = _nonce()
        status, body = self._send(wire.encode_set(key, value, flags), deadline, write=True)
        if status == 409:
            raise self._final(body, write=True)
        written = self._written(body)
        if written.lease is None:
            return written.revision
        return self._free(Held(0, Op("set", key, value, flags=flags), written), deadline)

    def _written(self, body: bytes) -> KeyValue:
        results = self._results(body, write=True)
        if not results:
            raise errors.of_hidden(write=True)
        return self._entry(results[0], write=True)

    def _delete(self, key: str, timeout: float) -> bool:
        ops = (Op("get", key), Op("delete", key))
        status, body = self._send(wire.encode(ops), monotonic() + timeout, write=True)
        if status == 409:
            self._missing(body)
            return False
        return True

    # -- transactions -----------------------------------------------------------------------------

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        deadline = monotonic() + timeout
        planner = Planner(txn, _nonce)
        if not planner.plan.writes:  # it begins with questions: what is too large is not even asked
            for draft in planner.drafts():
                self._sized(wire.encode(draft.ops))
        while True:
            plan = planner.plan
            write = plan.writes
            if not plan.ops:  # nothing is asked and nothing written
                done = planner.applied([])
            else:
                status, body = self._send(wire.encode(plan.ops), deadline, write=write)
                if status == 409:
                    conflicts = planner.conflicts
                    done = planner.refused(self._refusals(body, write=write))
                    if planner.conflicts > conflicts:
                        self._wait(planner, deadline)
                else:
                    results = self._results(body, write=write)
                    try:
                        answers = plan.answers(results)
                    except Hidden:
                        raise errors.of_hidden(write=write) from None
                    except _BAD as error:
                        raise errors.of_nonsense(self._transport.where, write=write) from error
                    for held in plan.held(answers):
                        answers[held.position] = held.written._replace(
                            revision=self._free(held, deadline), lease=None
                        )
                    done = planner.applied(answers)
            if done is not None:
                return done

    def _wait(self, planner: Planner, deadline: float) -> None:
        """Let others finish; raises once the time is up."""
        left = deadline - monotonic()
        if planner.delayed is None:
            # Full jitter: those who collided once spread out over the whole span.
            span = min(_MOST_BACKOFF, _BACKOFF * 2 ** min(planner.conflicts, 10))
            pause = random.uniform(0, span)  # noqa: S311
        else:
            pause = _DELAY_BACKOFF
        if pause >= left:
            if planner.delayed is not None:
                raise planner.delayed
            raise Contention(
                f"others changed what the transaction had read {planner.conflicts} times until "
                "its time was up; nothing was applied: try again, or make the time-out longer"
            )
        if self._transport.closing.wait(pause):
            raise Unavailable("the handle was closed")

    def _free(self, held: Held, deadline: float) -> int:
        """Make permanent what was written under a session's hold; the key's revision then.

        Others may come first. If they changed the key, or deleted it, what was written here is
        history and its first revision stands. If it is gone with its session, it is written again;
        who may not read sessions cannot tell that from a deletion.
        """
        try:
            return self._free_now(held, deadline)
        except OutcomeUnknown:
            raise
        except KviError as error:
            raise OutcomeUnknown(
                "the value was written, but the key may still vanish with the lease that it had; "
                "store it again"
            ) from error

    def _free_now(self, held: Held, deadline: float) -> int:
        op, key = held.op, held.op.key
        assert op.value is not None  # it was a write of a value
        revision, lease = held.written.revision, held.written.lease
        while lease is not None:
            unlocked = self._apply(
                (
                    Op("check-index", key, revision=revision),
                    Op("unlock", key, op.value, None, wire.session_of(lease), _nonce()),
                ),
                deadline,
            )
            if unlocked is not None:
                return unlocked[-1].revision
            kv = self._look(key, deadline)
            if kv is None:
                with suppress(PermissionDenied):
                    if self._is_alive(wire.session_of(lease), deadline):
                        return revision
                created = self._apply((Op("cas", key, op.value, 0, None, _nonce()),), deadline)
                return revision if created is None else created[-1].revision
            if kv["Flags"] != op.flags:
                break  # someone has written since
            # The session has let go of the key by itself, which is a change without a value.
            found = self._entry(kv, write=False)
            revision, lease = found.revision, found.lease
        return revision

    def _apply(self, ops: tuple[Op, ...], deadline: float) -> list[KeyValue] | None:
        """The results, or ``None`` if the state of a key is not what ``ops`` ask for."""
        status, body = self._send(wire.encode(ops), deadline, write=True)
        if status == 409:
            for _, refusal, text in self._refusals(body, write=True):
                if refusal is not Refusal.STATE:
                    raise errors.of_refusal(refusal, text)
            return None
        return [self._entry(kv, write=True) for kv in self._results(body, write=True)]

    # -- ranges -----------------------------------------------------------------------------------

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        """Read the whole answer; what is iterated later is this one moment's state."""
        pages = Pages()
        limit = scan.limit
        deadline = monotonic() + timeout
        with closing(self._found(scan.span, deadline)) as items:
            for kv in items:
                pages.add(self._entry(kv, write=False, keys_only=scan.keys_only))
                if not scan.reverse and pages.count == limit:
                    break  # the rest of the answer is left unread, with its connection
        pages.finish()
        return RangeResult(None, lambda: pages.read(limit, reverse=scan.reverse))

    def _count(self, span: Span, timeout: float) -> int:
        path, deadline = wire.path_of(span.common_prefix), monotonic() + timeout
        if path is None:  # only the JSON of a transaction can name this prefix, and it has no ?keys
            return sum(1 for _ in self._found(span, deadline))
        return sum(key in span for key in self._list(f"{path}?keys", deadline))

    def _delete_range(self, span: Span, timeout: float) -> int:
        """Delete in one atomic step for a prefix, else key by key.

        For the whole store (``prefix=""``) the deletion is atomic as well, but Consul counts
        nothing there: the number is that of the keys a moment before, and may miss, or count
        twice, what others write at that moment.
        """
        deadline = monotonic() + timeout
        if not span.start and span.end is None:
            deleted = _Deleted()
            for key in self._list("?keys", deadline):
                deleted.add(key)
            head = self._transport.head("DELETE", f"/v1/kv/?recurse&{self._query}")
            status, body = self._exchange(head, b"", deadline, write=True)
            if status != 200:
                raise self._of_status(status, body, write=True)
            self._mark(deleted.marks(), deadline)
            return deleted.count
        if span.prefix is not None:
            return self._delete_tree(span, span.prefix, deadline)
        return super()._delete_range(span, timeout)

    def _delete_tree(self, span: Span, prefix: str, deadline: float) -> int:
        """Delete the keys of a prefix in one step, counting them in the same.

        Consul's tree of a prefix may hold one key that the span does not: the prefix itself, which
        for a namespace as a whole is the mark of other tools; or, for a prefix that ends in NUL,
        the key without that NUL, because Consul's index ends each key with one. Consul cannot
        leave it out, so if it is there it is put back in the same step.
        """
        tree = (Op("get-tree", prefix), Op("delete-tree", prefix))
        stranger = prefix if prefix not in span else prefix[:-1] if prefix[-1] == "\0" else ""
        if not stranger:
            return self._delete_all(span, tree, deadline)
        ops: tuple[Op, ...] = (Op("check-not-exists", stranger), *tree)
        for tries in itertools.count(1):
            left = deadline - monotonic()
            if tries > 2 and left <= 0:
                raise Contention(
                    f"the key {stranger!r} beside the range changed all the time until the time "
                    "was up; nothing was deleted: try again"
                )
            try:
                return self._delete_all(span, ops, deadline)
            except _Refused:
                ops = self._kept(stranger, tree, deadline)
        raise AssertionError("unreachable")

    def _delete_all(self, span: Span, ops: tuple[Op, ...], deadline: float) -> int:
        """Delete a tree by ``ops``, which show it first; how many keys of ``span`` there were."""
        deleted = _Deleted()
        for kv in self._txn_items(ops, deadline, write=True):
            if kv["Key"] in span:
                deleted.add(kv["Key"])
        self._mark(deleted.marks(), deadline)
        return deleted.count

    def _mark(self, keys: list[str], deadline: float) -> None:
        """Let Consul tell those who wait for a prefix within a tree that it was deleted.

        It notes the deletion of a tree under the tree's own prefix only (and of the whole store
        nowhere), so the index of a prefix within falls back to that of an older deletion there, and
        its blocking queries sleep on until their wait is over. A key that is written and deleted
        again, unseen in one transaction, brings the index forward. Should it fail, watches learn
        of the deletion once they have waited.
        """
        with suppress(KviError):
            while keys and monotonic() < deadline:
                some, keys = keys[:_TOMBSTONES], keys[_TOMBSTONES:]
                self._apply(
                    tuple(
                        op
                        for key in some
                        for op in (
                            Op("check-not-exists", key),
                            Op("set", key, b"", flags=_nonce()),
                            Op("delete", key),
                        )
                    ),
                    deadline,
                )

    def _kept(self, key: str, ops: tuple[Op, ...], deadline: float) -> tuple[Op, ...]:
        """``ops``, which delete ``key``, so that it is afterwards as it is now."""
        kv = self._look(key, deadline)
        if kv is None:
            return (Op("check-not-exists", key), *ops)
        found = self._entry(kv, write=False)
        session = None if found.lease is None else wire.session_of(found.lease)
        verb = "set" if session is None else "lock"
        back = Op(verb, key, found.value, None, session, kv["Flags"])
        return (Op("check-index", key, revision=found.revision), *ops, back)

    def _found(self, span: Span, deadline: float) -> Generator[dict[str, Any]]:
        """What Consul tells of the entries of ``span``, as it comes in."""
        prefix, start, end = span.common_prefix, span.start, span.end
        items = (
            self._txn_items((Op("get-tree", prefix),), deadline, write=False)
            if prefix
            else self._list("?recurse", deadline)
        )
        where = self._transport.where
        with closing(items):
            for kv in items:
                try:
                    key: str = kv["Key"]
                    if end is not None and key >= end:
                        # Keys that are not UTF-8 come as U+FFFD, out of their order.
                        if "\ufffd" in key:
                            continue
                        return
                    if key < start:
                        continue
                except _BAD as error:
                    raise errors.of_nonsense(where, write=False) from error
                yield kv

    def _list(self, target: str, deadline: float) -> Generator[Any]:
        """The items of a prefix read by path, entries or keys."""
        head = self._transport.head("GET", f"/v1/kv/{target}&{self._query}")
        yield from self._items(head, b"", deadline, write=False)

    def _txn_items(
        self, ops: tuple[Op, ...], deadline: float, *, write: bool
    ) -> Generator[dict[str, Any]]:
        body = self._sized(wire.encode(ops))
        for item in self._items(self._txn_head, body, deadline, write=write):
            try:
                kv = item["KV"]
                kv["Key"].encode()
            except _BAD as error:
                raise errors.of_nonsense(self._transport.where, write=write) from error
            yield kv

    def _items(self, head: bytes, body: bytes, deadline: float, *, write: bool) -> Generator[Any]:
        parser, doubts = wire.Parser(), iter(_DOUBTS)
        where = self._transport.where
        try:
            while True:
                with self._transport.begin(head, body, deadline, read_only=not write) as exchange:
                    status = exchange.status
                    if status == 200:
                        for piece in exchange.pieces():
                            yield from parser.feed(piece)
                        parser.end()
                        return
                    if status == 404 and b"x-consul-index" in exchange.headers:
                        return  # nothing has this prefix
                    said = exchange.read()
                if not self._doubted(status, said, doubts, deadline):
                    break
        except Broken as broken:
            raise errors.of_broken(broken, where, write=write) from broken.__cause__
        except wire.NotAList as error:
            raise errors.of_nonsense(where, write=write) from error
        if status == 409:
            self._missing(said)
            raise _Refused("Consul refused the transaction: a key has changed")
        raise self._of_status(status, said, write=write)

    # -- leases, locks, watches -------------------------------------------------------------------

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return self._grant(ttl, 0.0, timeout)

    def _lock_lease(self, ttl: float, timeout: float) -> Grant:
        delay = sessions.delay_of(ttl)
        return self._grant(ttl, delay, timeout)._replace(ttl=delay)

    def _grant(self, ttl: float, delay: float, timeout: float) -> Grant:
        deadline = monotonic() + timeout
        wanted = sessions.encode_session(ttl, delay)
        status, body = self._session("create", wanted, deadline, write=True)
        if status != 200:
            raise self._of_status(status, body, write=True)
        try:
            return Grant(sessions.decode_created(body), ttl)
        except _BAD as error:
            raise errors.of_nonsense(self._transport.where, write=True) from error

    def _lease_renew(self, lease: int, timeout: float) -> float:
        session, deadline = wire.session_of(lease), monotonic() + timeout
        while True:
            status, body = self._session(f"renew/{session}", b"", deadline, write=False)
            if status != 404 or session.encode() not in body:
                break
            # A server that has just begun to lead denies sessions that it has not come to know yet
            # from its log. A consistent read waits for that.
            if not self._is_alive(session, deadline):
                raise errors.of_refusal(Refusal.SESSION, "")
        if status != 200:
            raise self._of_status(status, body, write=False)
        try:
            return sessions.decode_ttl(body) or float(CAPABILITIES.lease_max_ttl or 0)
        except _BAD as error:
            raise errors.of_nonsense(self._transport.where, write=False) from error

    def _is_alive(self, session: str, deadline: float) -> bool:
        """Whether Consul has this session, by a read that is linearizable."""
        head = self._transport.head("GET", f"/v1/session/info/{session}?{self._query}")
        status, body = self._exchange(head, b"", deadline, write=False)
        if status != 200:
            raise self._of_status(status, body, write=False)
        return session.encode() in body

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        deadline = monotonic() + timeout
        head = self._transport.head("GET", f"/v1/session/list?{self._query}")
        answer = self._answer(head, b"", deadline, write=False)
        if answer.status != 200:
            raise self._of_status(answer.status, answer.body, write=False)
        if answer.headers.get(b"x-consul-results-filtered-by-acls") == b"true":
            raise errors.of_hidden(write=False)
        try:
            found = sessions.decode_sessions(answer.body)
        except _BAD as error:
            raise errors.of_nonsense(self._transport.where, write=False) from error
        if ids is not None:
            found = [lease for lease in found if lease.id in ids]
        if span is None or not found:
            return found
        keys: dict[int, list[str]] = {lease.id: [] for lease in found}
        with closing(self._found(span, deadline)) as items:
            for kv in items:
                entry = self._entry(kv, write=False, keys_only=True)
                if entry.lease in keys:
                    keys[entry.lease].append(entry.key)
        return [lease._replace(keys=keys[lease.id]) for lease in found]

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        session, deadline = wire.session_of(lease), monotonic() + timeout
        key = self._claims.get(lease)
        if key is not None:  # it would be kept from others, as after a crash
            self._apply(sessions.release_ops(sessions.waiting(key, lease)), deadline)
        status, body = self._session(f"destroy/{session}", b"", deadline, write=True)
        self._claims.pop(lease, None)
        # with ACLs, Consul looks for the session before it ends it
        if status != 200 and b"Unknown session" not in body:
            raise self._of_status(status, body, write=True)

    def _session(
        self, what: str, body: bytes, deadline: float, *, write: bool
    ) -> tuple[int, bytes]:
        head = self._transport.head("PUT", f"/v1/session/{what}{self._dc_query}")
        return self._exchange(head, body, deadline, write=write)

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        deadline = monotonic() + timeout
        key = self._claims[lease] = single_key(name)
        lock = sessions.lock_op(key, lease)
        while True:
            # Only what was seen free before is claimed, so that Consul has looked at the lock-delay
            # after the last holder was gone. It looks before it orders the writes: what is claimed
            # unseen, as a holder's node is taken out, passes that look, and finds the key deleted.
            kv = self._look(key, deadline)
            try:
                found = sessions.owner(kv, lease) if kv is not None else True
                check = (
                    Op("check-not-exists", key)
                    if kv is None
                    else Op("check-index", key, revision=kv["ModifyIndex"])
                )
            except _BAD as error:
                raise errors.of_nonsense(self._transport.where, write=False) from error
            if isinstance(found, Claim):
                return found
            if not found:
                raise errors.of_foreign(key)
            claim = self._claim((check, lock), lease, deadline)
            if claim is not None:
                return claim

    def _claim(self, ops: tuple[Op, Op], lease: int, deadline: float) -> Claim | None:
        """The claim after trying ``ops``; ``None`` if the key is not as they say."""
        key = ops[1].key
        status, body = self._send(wire.encode(ops), deadline, write=True)
        if status != 409:
            results = self._results(body, write=True)
            if not results:
                raise errors.of_hidden(write=True)
            return sessions.held(key, self._entry(results[-1], write=True).revision)
        refusals = self._refusals(body, write=True)
        seen = {refusal for _, refusal, _ in refusals}
        if seen <= {Refusal.STATE, Refusal.HELD, Refusal.DELAY}:
            return None if seen == {Refusal.STATE} else sessions.waiting(key, lease)
        for _, refusal, text in refusals:
            if refusal in (Refusal.SESSION, Refusal.DENIED, Refusal.OTHER):
                raise errors.of_refusal(refusal, text)
        raise AssertionError("unreachable")

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        # Also for a claim that waits: one sent again may have been granted, and its answer lost.
        done = self._apply(sessions.release_ops(claim), monotonic() + timeout)
        return done is not None or claim.ahead is not None

    def _state_of(self, span: Span, timeout: float) -> Generator[dict[str, Any]]:
        """What Consul tells of the entries of ``span``, for a watch."""
        key, deadline = only_key(span), monotonic() + timeout
        if key is None:
            yield from self._found(span, deadline)
        elif (kv := self._look(key, deadline)) is not None:
            yield kv

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return ConsulFeed(self._watches, spec, wake, timeout)

    # -- the handle -------------------------------------------------------------------------------

    def _ping(self, timeout: float) -> None:
        deadline = monotonic() + timeout
        # It tells of a missing leader at once; the read below would be held back for seconds.
        head = self._transport.head("GET", "/v1/status/leader")
        status, body = self._exchange(head, b"", deadline, write=False)
        if status != 200:
            raise self._of_status(status, body, write=False)
        if body.strip() in (b'""', b""):
            raise self._of_status(500, errors.NO_LEADER, write=False)
        # An empty transaction is a linearizable read that needs no permission for any key.
        self._results(self._send(b"[]", deadline, write=False)[1], write=False)

    def _close(self) -> None:
        self._watches.end()
        self._transport.close()
        self._watches.join()

    def _forked(self) -> None:
        self._transport.forked()  # first: it is what a handle has first
        self._watches.reset()

    # -- exchanges --------------------------------------------------------------------------------

    def _send(self, body: bytes, deadline: float, *, write: bool) -> tuple[int, bytes]:
        """Send a transaction; its answer if the status is 200 or 409, else an error."""
        status, answer = self._exchange(self._txn_head, self._sized(body), deadline, write=write)
        if status != 200 and status != 409:
            raise self._of_status(status, answer, write=write)
        return status, answer

    def _exchange(
        self, head: bytes, body: bytes, deadline: float, *, write: bool
    ) -> tuple[int, bytes]:
        answer = self._answer(head, body, deadline, write=write)
        return answer.status, answer.body

    def _answer(self, head: bytes, body: bytes, deadline: float, *, write: bool) -> Answer:
        transport, doubts = self._transport, iter(_DOUBTS)
        while True:
            try:
                answer = transport.exchange(head, body, deadline, read_only=not write)
            except Broken as broken:
                raise errors.of_broken(broken, transport.where, write=write) from broken.__cause__
            if self._doubted(answer.status, answer.body, doubts, deadline):
                continue
            return answer

    def _doubted(self, status: int, body: bytes, doubts: Iterator[float], deadline: float) -> bool:
        """Whether to ask again, after a while, as it says that the token is not known."""
        pause = next(doubts, None) if status == 403 and errors.NO_TOKEN in body else None
        if pause is None or monotonic() + pause >= deadline:
            return False
        self._transport.closing.wait(pause)
        return True

    def _of_status(self, status: int, body: bytes, *, write: bool) -> KviError:
        return errors.of_status(status, self._text(body), write=write, dc=self._dc)

    def _sized(self, body: bytes) -> bytes:
        if len(body) > wire.MAX_BODY:
            raise ValueTooLarge(
                f"the transaction has {len(body):,} bytes in Consul's JSON, Consul takes at most "
                f"{wire.MAX_BODY:,}; split it, or its values"
            )
        return body

    def _results(self, body: bytes, *, write: bool) -> list[dict[str, Any]]:
        try:
            return wire.decode_results(body)
        except _BAD as error:
            raise errors.of_nonsense(self._transport.where, write=write) from error

    def _entry(self, kv: dict[str, Any], *, write: bool, keys_only: bool = False) -> KeyValue:
        try:
            return wire.entry_of(kv, keys_only=keys_only)
        except _BAD as error:
            raise errors.of_nonsense(self._transport.where, write=write) from error

    def _refusals(self, body: bytes, *, write: bool) -> list[tuple[int, Refusal, str]]:
        try:
            return [
                (position, errors.refusal_of(text), self._text(text.encode()))
                for position, text in wire.decode_refusals(body)
            ]
        except _BAD as error:
            raise errors.of_nonsense(self._transport.where, write=write) from error

    def _missing(self, body: bytes) -> None:
        """Return if all that was refused is because a key is not there; else raise."""
        for _, refusal, text in self._refusals(body, write=False):
            if refusal is not Refusal.STATE:
                raise errors.of_refusal(refusal, text)

    def _final(self, body: bytes, *, write: bool) -> KviError:
        """The error for a refusal where none can be."""
        for _, refusal, text in self._refusals(body, write=write):
            return errors.of_refusal(refusal, text)
        return errors.of_nonsense(self._transport.where, write=write)

    def _text(self, body: bytes) -> str:
        """A server's text for a message, without the token should it be quoted."""
        text = body.decode(errors="replace")
        token = self._transport.token
        return text if token is None else text.replace(token, "***")


def _nonce() -> int:
    # From the system: a generator of this process could be seeded by the program, or copied by a
    # fork, and two writers with the same nonce and value would not notice each other.
    return wire.nonce(int.from_bytes(os.urandom(8), "big"))


def _by_another(work: Callable[[], int]) -> int:
    """For the main thread: have another one do what must not be left in the middle."""
    done: SimpleQueue[int | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except BaseException as error:  # noqa: BLE001  (who waits gets it)
            done.put(error)

    threading.Thread(target=run, name="kvi-consul-free", daemon=True).start()
    result = done.get()
    if isinstance(result, BaseException):
        raise result
    return result
