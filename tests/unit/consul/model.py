"""Consul's transactions and sessions in memory, as 1.8.7 was seen to run them, and a transport."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import kvi
from kvi_consul.store import ConsulKvi
from kvi_consul.transport import Answer, Transport

from tests.support import backends

Store = dict[str, dict[str, Any]]


class Consul:
    """The keys of a Consul store and the transactions on them."""

    def __init__(self) -> None:
        self.kv: Store = {}
        self.index = 10
        self.sessions: set[str] = set()

    def run(self, ops: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Apply all operations or none; results and errors."""
        assert 0 < len(ops) <= 64
        before = copy.deepcopy(self.kv)
        self.index += 1
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for position, op in enumerate(ops):
            try:
                results += self._run(**op["KV"])
            except ValueError as error:
                errors.append({"OpIndex": position, "What": str(error)})
        if errors:
            self.kv = before
            return [], errors
        return results, []

    def _run(self, Verb: str, Key: str, **given: Any) -> list[dict[str, Any]]:  # noqa: N803
        found = self.kv.get(Key)
        index, session = given.get("Index", 0), given.get("Session", "")
        stale = index != (found["ModifyIndex"] if found else 0)
        held = found.get("Session", "") if found else ""
        match Verb:
            case "get" | "check-index" | "check-session":
                if found is None:
                    raise ValueError(f'key "{Key}" doesn\'t exist')
                if Verb == "check-index" and stale:
                    raise ValueError(f'failed index check for key "{Key}", current …')
                if Verb == "check-session" and session != held:
                    raise ValueError(f'failed session check for key "{Key}", current …')
                return [{"KV": found if Verb == "get" else found | {"Value": None}}]
            case "check-not-exists":
                if found is not None:
                    raise ValueError(f'key "{Key}" exists')
                return []
            case "delete":
                self.kv.pop(Key, None)
                return []
            case "cas" if stale:
                raise ValueError(f'failed to set key "{Key}", index is stale')
            case "lock" if session not in self.sessions:
                raise ValueError(f'invalid session "{session}"')
            case "lock" if held not in ("", session):
                raise ValueError(f'failed to lock key "{Key}", lock is already held')
            case "unlock" if not held or held != session:
                raise ValueError(f'failed to unlock key "{Key}", lock isn\'t held, or …')
            case "set" | "cas" | "lock" | "unlock":
                holder = {"set": held, "cas": held, "lock": session, "unlock": ""}[Verb]
                return [{"KV": self._put(Key, given, holder)}]
        raise AssertionError(Verb)

    def _put(self, key: str, given: dict[str, Any], session: str) -> dict[str, Any]:
        found = self.kv.get(key)
        new = {"Key": key, "Flags": given.get("Flags", 0), "Value": given.get("Value") or None}
        if session:
            new["Session"] = session
        if found is not None and all(
            found.get(n) == new.get(n) for n in ("Flags", "Value", "Session")
        ):
            return found | {"Value": None}  # a write that changes nothing is none
        new["CreateIndex"] = self.index if found is None else found["CreateIndex"]
        new["ModifyIndex"] = self.index
        self.kv[key] = new
        return new | {"Value": None}


class Wire(Transport):
    """A transport that ends in a `Consul` of the same process."""

    def __init__(self, consul: Consul) -> None:
        super().__init__("model", 8500)
        self.consul = consul
        self.sent: list[list[dict[str, Any]]] = []
        self.before: Callable[[], None] = lambda: None  # what others do before each exchange

    def exchange(
        self,
        head: bytes,
        body: bytes,
        deadline: float,
        *,
        read_only: bool,
        waits: bool = False,
        elsewhere: bool = True,
    ) -> Answer:
        """Run the transaction, or tell of the session."""
        self.before()
        if not body:
            session = head.partition(b"GET /v1/session/info/")[2].partition(b"?")[0].decode()
            assert session
            found = [{"ID": session}] if session in self.consul.sessions else []
            return Answer(200, {}, json.dumps(found).encode())
        ops = json.loads(body)
        self.sent.append(ops)
        writes = {"set", "cas", "lock", "unlock", "delete"}
        assert read_only == (not any(op["KV"]["Verb"] in writes for op in ops))
        results, errors = self.consul.run(ops)
        answer = {"Results": results or None, "Errors": errors or None}
        return Answer(409 if errors else 200, {}, json.dumps(answer).encode())

    def verbs(self) -> list[list[str]]:
        """What was sent, as verbs only."""
        return [[op["KV"]["Verb"] for op in ops] for ops in self.sent]


def opened() -> tuple[kvi.Kvi, Wire, Consul]:
    """A store on a new model."""
    consul = Consul()
    wire = Wire(consul)
    return backends.opened(ConsulKvi("consul://model:8500", wire, timeout=5)), wire, consul
