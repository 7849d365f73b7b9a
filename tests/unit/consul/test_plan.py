"""Transactions on a model of Consul: what is sent, and that the outcome is atomic."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import pytest
from kvi import Delete, Get, Key, KeyValue, Put
from kvi.errors import Contention, InvalidArgument, LeaseLost, ValueTooLarge
from kvi.model import Compare, Operation, Txn, TxnResult
from kvi.policy.txn import check_txn, choose, perform
from kvi_consul import wire as codec
from kvi_consul.plan import Held
from kvi_consul.store import CAPABILITIES

from tests.support.inside import inmost
from tests.unit.consul.model import Consul, opened

ALICE, BOB = UUID(int=0xA11CE), UUID(int=0xB0B)


def test_a_store_is_one_operation() -> None:
    """Storing costs one round trip of one operation."""
    store, wire, _ = opened()
    store.store("k", b"v")
    assert wire.verbs() == [["set"]]


@pytest.mark.parametrize(
    ("when", "verbs"),
    [
        (Key("k").absent, ["cas"]),
        (Key("k").revision == 0, ["cas"]),
        (Key("k").revision == 7, ["cas"]),
        (Key("k").exists, ["get", "set"]),
        (Key("other").absent, ["check-not-exists", "set"]),
        (Key("other").revision == 7, ["check-index", "set"]),
        (Key("other").lease == 7, ["check-session", "set"]),
    ],
)
def test_compares_that_consul_knows_cost_one_round_trip(when: Compare, verbs: list[str]) -> None:
    """A compare that one operation can say is sent with the branch, and its refusal is proof."""
    store, wire, _ = opened()
    store.txn([when], [Put("k", b"v")])
    assert wire.verbs() == [verbs]


def test_a_refused_compare_is_decided_anew_for_the_other_branch() -> None:
    """If there is something to do otherwise, it is done on the condition that it is still right."""
    store, wire, _ = opened()
    store.store("k", b"v")
    wire.sent.clear()
    done = store.txn([Key("k").absent], [Put("k", b"w")], [Put("log", b"there")])
    assert not done.succeeded
    assert wire.verbs() == [["cas"], ["get"], ["check-index", "set"]]


def test_value_compares_read_decide_and_commit_on_the_revision() -> None:
    """Two round trips, and the second one holds only if the key has not changed since."""
    store, wire, _ = opened()
    store.store("k", b"v")
    wire.sent.clear()
    assert store.tas("k", "v", "w")
    assert wire.verbs() == [["get"], ["cas"]]
    assert not store.tas("k", "v", "x")
    assert wire.verbs()[2:] == [["get"]]


def test_a_delete_that_finds_nothing_says_so() -> None:
    """A delete is sent with an operation that fails if the key is gone."""
    store, wire, _ = opened()
    store.store("k", b"v")
    wire.sent.clear()
    assert store.txn([], [Delete("k"), Delete("gone")]).results == (True, False)
    assert wire.verbs() == [
        ["get", "delete", "get", "delete"],
        ["get", "delete", "check-not-exists"],
    ]


def test_reads_of_several_keys_are_one_moment() -> None:
    """Keys that are missing are read in one transaction with those that are there."""
    store, wire, _ = opened()
    store.store("a", b"1")
    wire.sent.clear()
    done = store.txn([], [Get("a"), Get("b"), Get("c")])
    assert [None if e is None else e.value for e in done.results] == [b"1", None, None]  # type: ignore[union-attr]
    assert wire.verbs()[-1] == ["get", "check-not-exists", "check-not-exists"]
    assert done.revision is None


def test_sixty_four_operations_fit() -> None:
    """As many compares and operations as the capability says are one transaction of Consul's."""
    store, _, _ = opened()
    puts = [Put(f"p{n}", b"v") for n in range(64)]
    assert store.txn([], puts).succeeded
    whens = [Key(f"p{n}").value == b"v" for n in range(32)]
    assert store.txn(whens, [Put(f"p{n}", b"w") for n in range(32)]).succeeded
    assert store.txn(whens, [], [Delete(f"p{n}") for n in range(32)]).results == (True,) * 32


def test_more_than_consul_takes_is_refused_before_it_is_sent() -> None:
    """Deletes without compares need two operations each; too many are an error, never half."""
    store, wire, _ = opened()
    with pytest.raises(InvalidArgument, match="Delete"):
        store.txn([], [Delete(f"p{n}") for n in range(33)])
    with pytest.raises(ValueTooLarge):
        store.txn([], [Put("a", bytes(300_000)), Put("b", bytes(300_000))])
    assert wire.sent == []


def test_endless_contention_ends() -> None:
    """If every commit finds the key changed, the call ends in time and nothing was applied."""
    store, wire, consul = opened()
    store.store("k", b"v")
    numbers = iter(range(10**9))

    def others() -> None:
        consul.run([{"KV": {"Verb": "set", "Key": "k", "Value": "dg==", "Flags": next(numbers)}}])

    wire.before = others
    with pytest.raises(Contention, match="nothing was applied"):
        store.tas("k", "v", "w", timeout=0.2)
    assert consul.kv["k"]["Value"] == "dg=="


def hold(consul: Consul, key: str, session: UUID) -> None:
    """Let a session hold a key."""
    consul.sessions.add(str(session))
    op = {"Verb": "lock", "Key": key, "Value": "aGVsZA==", "Session": str(session)}
    assert consul.run([{"KV": op}])[1] == []


def test_a_put_makes_a_held_key_permanent() -> None:
    """A key that a session held has none after a put without lease, at the revision returned."""
    store, wire, consul = opened()
    hold(consul, "k", ALICE)
    revision = store.store("k", b"v")
    assert store.get("k") == KeyValue("k", b"v", revision, 11)
    assert wire.verbs()[:2] == [["set"], ["check-index", "unlock"]]


@pytest.mark.parametrize(
    "when", [Key("k").value == b"held", Key("k").exists, Key("k").revision == 11]
)
def test_a_put_in_a_transaction_makes_a_held_key_permanent(when: Compare) -> None:
    """The same in a transaction, whose revision is then the key's."""
    store, _, consul = opened()
    hold(consul, "k", ALICE)
    done = store.txn([when], [Put("k", b"v"), Get("k")])
    assert done.results == (done.revision, KeyValue("k", b"v", done.revision or 0, 11))
    assert store.get("k") == done.results[1]


def test_a_key_that_vanished_while_it_was_freed_is_stored_again() -> None:
    """The end of the old session does not take the new value with it."""
    store, wire, consul = opened()
    hold(consul, "k", ALICE)

    def expire() -> None:
        if consul.kv["k"].get("Value") == "dg==":
            consul.sessions.clear()
            consul.kv.pop("k")
            wire.before = lambda: None

    wire.before = expire
    revision = store.store("k", b"v")
    assert store.get("k") == KeyValue("k", b"v", revision, revision)


def test_a_key_that_was_deleted_while_it_was_freed_stays_deleted() -> None:
    """If the old session is alive, somebody else has deleted the new value: it was there."""
    store, wire, consul = opened()
    hold(consul, "k", ALICE)

    def delete() -> None:
        if consul.kv["k"].get("Value") == "dg==":
            consul.run([{"KV": {"Verb": "delete", "Key": "k"}}])
            wire.before = lambda: None

    wire.before = delete
    assert store.store("k", b"v") > 0
    assert store.get("k") is None


def test_a_key_that_its_session_let_go_is_permanent() -> None:
    """A session that ends and leaves its keys has done what the second transaction is for."""
    store, wire, consul = opened()
    hold(consul, "k", ALICE)

    def release() -> None:
        if consul.kv["k"].get("Value") == "dg==":
            consul.index += 1
            del consul.kv["k"]["Session"]
            consul.kv["k"]["ModifyIndex"] = consul.index
            wire.before = lambda: None

    wire.before = release
    revision = store.store("k", b"v")
    assert store.get("k") == KeyValue("k", b"v", revision, 11)


def test_a_later_writer_is_not_overwritten_while_freeing() -> None:
    """If someone else writes in between, our write is history and theirs stands."""
    store, wire, consul = opened()
    hold(consul, "k", ALICE)

    def write() -> None:
        if consul.kv["k"].get("Value") == "dg==":
            consul.run([{"KV": {"Verb": "set", "Key": "k", "Value": "dGhlaXJz", "Flags": 1}}])
            wire.before = lambda: None

    wire.before = write
    store.store("k", b"v")
    found = store.get("k")
    assert found is not None
    assert found.value == b"theirs"


def test_a_lease_takes_a_key_over_from_another() -> None:
    """A put with a lease on a key of another one succeeds, and the key has the new lease."""
    store, wire, consul = opened()
    hold(consul, "k", ALICE)
    consul.sessions.add(str(BOB))
    revision = store.store("k", b"v", lease=BOB.int)
    assert store.get("k") == KeyValue("k", b"v", revision, 11, None, BOB.int)
    assert wire.verbs()[:3] == [["lock"], ["get"], ["unlock", "lock"]]
    # The same with the session known from the read, in the one commit.
    done = store.txn([Key("k").value == b"v"], [Put("k", b"w", ALICE.int), Get("k")])
    assert done.results[1] == KeyValue("k", b"w", done.revision or 0, 11, None, ALICE.int)


def test_taking_over_too_many_keys_at_once_is_refused_before_anything_is_written() -> None:
    """Each key of another lease costs an operation more; beyond 64 it is an error, never half."""
    store, _, consul = opened()
    keys = [f"k{n}" for n in range(33)]
    for key in keys:
        hold(consul, key, ALICE)
    consul.sessions.add(str(BOB))
    before = entries(consul)
    with pytest.raises(InvalidArgument, match="other leases"):
        store.txn([], [Put(key, b"v", BOB.int) for key in keys])
    assert entries(consul) == before
    assert store.txn([], [Put(key, b"v", BOB.int) for key in keys[1:]])
    assert {store.get(key).lease for key in keys[1:]} == {BOB.int}  # type: ignore[union-attr]


def test_a_lease_that_is_gone_writes_nothing() -> None:
    """An unknown session is `LeaseLost`, but only if the branch with it is the one to run."""
    store, _, consul = opened()
    store.store("k", b"v")
    for lease in (ALICE.int, 1 << 200):
        with pytest.raises(LeaseLost):
            store.store("k", b"w", lease=lease)
        with pytest.raises(LeaseLost):
            store.txn([Key("k").value == b"v"], [Put("a", b"1"), Put("k", b"w", lease)])
        for when in (Key("k").absent, Key("k").value == b"x"):
            assert not store.txn([when], [Put("k", b"w", lease)])
            assert not store.txn([when], [Put("k", b"w", lease)], [Get("k")])
    assert set(consul.kv) == {"k"}


def random_compare(rnd: random.Random, keys: str, index: int) -> Compare:
    key = Key(rnd.choice(keys))
    operator = rnd.choice(["=", "!=", "<", ">"])
    match rnd.randrange(6):
        case 0:
            return key.exists
        case 1:
            return key.absent
        case 2:
            return key.value.compare(operator, rnd.choice([b"", b"1", b"2"]))
        case 3:
            return key.lease.compare(operator, rnd.choice([0, ALICE.int]))
        case 4:
            return key.revision.compare(operator, rnd.choice([0, rnd.randint(10, index)]))
        case _:
            return key.create_revision.compare(operator, rnd.choice([0, rnd.randint(10, index)]))


def random_branch(rnd: random.Random, keys: str) -> list[Operation]:
    written = set()
    branch: list[Operation] = []
    for _ in range(rnd.choice([0, 1, 1, 2, 3, 5])):
        key = rnd.choice(keys)
        if rnd.random() < 0.4 or key in written:
            branch.append(Get(key))
        else:
            written.add(key)
            lease = rnd.choice([None, None, ALICE.int])
            put = Put(key, rnd.choice([b"", b"1", b"2"]), lease)
            branch.append(put if rnd.random() < 0.7 else Delete(key))
    return branch


def entries(consul: Consul) -> dict[str, KeyValue]:
    return {key: codec.entry_of(kv) for key, kv in consul.kv.items()}


def plain(done: TxnResult) -> tuple[object, ...]:
    """A result without the revisions that a second write of a freed key may raise."""
    return (
        done.succeeded,
        [
            "put"
            if type(result) is int
            else (result.key, result.value, result.lease)
            if isinstance(result, KeyValue)
            else result
            for result in done.results
        ],
    )


@pytest.mark.parametrize("seed", range(60))
def test_random_transactions_equal_the_reference(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With others writing between any two messages, each transaction is one atomic step.

    Its outcome is that of the reference on the state before the message that settled it.
    """
    rnd = random.Random(seed)
    keys = "abcd"
    store, wire, consul = opened()
    consul.sessions |= {str(ALICE), str(BOB)}
    busy = seed % 3  # how often others come between
    states: list[dict[str, KeyValue]] = []
    freeing: list[int] = []  # how many messages had gone when held keys began to be freed
    free = inmost(store)._free

    def noticed(held: Held, deadline: float) -> Any:
        freeing.append(len(states))
        return free(held, deadline)

    monkeypatch.setattr(inmost(store), "_free", noticed)

    def others() -> None:
        if rnd.random() < busy * 0.25:
            key, flags = rnd.choice(keys), rnd.getrandbits(60)
            op = rnd.choice(
                [
                    {"Verb": "set", "Key": key, "Value": "MQ==", "Flags": flags},
                    {"Verb": "delete", "Key": key},
                    {"Verb": "lock", "Key": key, "Session": str(ALICE), "Flags": flags},
                ]
            )
            consul.run([{"KV": op}])
        states.append(entries(consul))

    wire.before = others
    for _ in range(60):
        txn = check_txn(
            [random_compare(rnd, keys, consul.index) for _ in range(rnd.choice([0, 1, 1, 2, 3]))],
            random_branch(rnd, keys),
            random_branch(rnd, keys),
            CAPABILITIES,
        )
        states.clear()
        freeing.clear()
        done = store.txn(txn.when, txn.then, txn.otherwise)
        state = states[(freeing[0] if freeing else len(states)) - 1] if states else entries(consul)
        expected = reference(txn, state)
        assert plain(done) == plain(expected), (txn, state)
        if not busy:
            for op in expected_writes(txn, expected.succeeded):
                found = store.get(op.key)
                if isinstance(op, Delete):
                    assert found is None
                else:
                    assert found is not None
                    assert (found.value, found.lease) == (op.value, op.lease)
                    assert found.revision == done.revision or freeing


def reference(txn: Txn, state: dict[str, KeyValue]) -> TxnResult:
    succeeded, branch = choose(txn, state.get)
    return TxnResult(succeeded, None, perform(branch, state.get, 10**6).results)


def expected_writes(txn: Txn, succeeded: bool) -> list[Put | Delete]:
    branch = txn.then if succeeded else txn.otherwise
    return [op for op in branch if not isinstance(op, Get)]
