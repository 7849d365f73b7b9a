"""The whole run: start agents, kill one every now and then, start it again, prove the end.

After the last write the agents rest, the checker reads the store, and every agent must come to hold
exactly that in its caches.
"""

from __future__ import annotations

import multiprocessing
import random
import secrets
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import kvi

from docs.examples.device_agent.agent import Job, digest, serve
from docs.examples.device_agent.checker import Findings, check

PATIENCE = 60.0  # seconds without any news


@dataclass(slots=True)
class Account:
    """What came of it."""

    uri: str
    agents: int
    seconds: float = 0.0
    kills: int = 0
    loads: list[tuple[float, int]] = field(default_factory=list)
    """How long each start took, and how many profiles it rebuilt."""
    done: Counter[str] = field(default_factory=Counter)
    findings: Findings | None = None
    converged: list[float] = field(default_factory=list)
    """Seconds until each agent's caches were what the store has."""
    strayed: int = 0

    @property
    def changes(self) -> int:
        """How many changes were acknowledged to agents that lived to tell."""
        return sum(number for deed, number in self.done.items() if "_" in deed)

    @property
    def wrong(self) -> list[str]:
        """What is not as it must be."""
        assert self.findings is not None
        strayed = [f"{self.strayed} agents do not hold what the store does"]
        return self.findings.wrong + strayed[: self.strayed]

    def as_json(self) -> dict[str, Any]:
        """The figures, for programs."""
        findings = self.findings
        assert findings is not None
        return {
            "agents": self.agents,
            "seconds": self.seconds,
            "kills": self.kills,
            "changes": self.changes,
            "done": dict(self.done),
            "flows": findings.flows,
            "meters": findings.meters,
            "profiles": findings.profiles,
            "stored": findings.stored,
            "whole": findings.whole,
            "converged": max(self.converged, default=0.0),
            "wrong": self.wrong,
        }


class _Agent:
    """One agent's process, and what it said last."""

    def __init__(self, job: Job, seed: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process: BaseProcess = spawn.Process(target=serve, args=(job, seed, theirs))
        self.process.start()
        theirs.close()
        self.loaded = False
        self.done: dict[str, int] = {}

    def end(self) -> None:
        """Kill it, if it lives still."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run(
    uri: str,
    agents: int = 6,
    seconds: float = 8,
    kill_every: float = 2,
    *,
    whole: bool = True,
    seed: int | None = None,
) -> Account:
    """Run it on the store at ``uri``, under a namespace of its own that is removed at the end."""
    namespace = f"device-{secrets.token_hex(4)}"
    with kvi.open(uri) as base, base.namespace(namespace) as store:
        if not store.capabilities.shared:
            raise kvi.NotSupported("each process would have a store of its own; name a shared one")
        store.ping()
        account = Account(base.uri, agents)
        try:
            _lead(store, account, Job(uri, namespace, whole), seconds, kill_every, seed)
        finally:
            with suppress(kvi.KviError):  # it would hide what went wrong before
                store.delete_range(prefix="")
    return account


def _lead(
    store: kvi.Kvi, account: Account, job: Job, seconds: float, kill_every: float, seed: int | None
) -> None:
    dice = random.Random(seed)
    with ExitStack() as stack:
        crew: list[_Agent] = []

        def end() -> None:
            for agent in crew:
                agent.end()

        stack.callback(end)

        def start() -> None:
            crew.append(_Agent(job, dice.randrange(2**32)))

        for _ in range(account.agents):
            start()
        while not all(agent.loaded for agent in crew):
            _listen(crew, account, PATIENCE)
        began = time.monotonic()
        next_kill = began + kill_every
        while (now := time.monotonic()) < began + seconds:
            _listen(crew, account, max(0.0, min(next_kill, began + seconds) - now))
            if time.monotonic() >= next_kill:
                next_kill += kill_every
                victim = crew.pop(dice.randrange(len(crew)))
                victim.end()
                account.done.update(victim.done)
                account.kills += 1
                start()
        account.seconds = time.monotonic() - began
        for agent in crew:
            agent.pipe.send("rest")
        for agent in crew:
            account.done.update(_hear(agent.pipe, "rests"))
        account.findings = check(store)
        for agent in crew:
            agent.pipe.send(digest(account.findings.contents))
        for agent in crew:
            took = _hear(agent.pipe, "agrees", "strayed")
            if took is None:
                account.strayed += 1
            else:
                account.converged.append(took)
        for agent in crew:
            agent.process.join(PATIENCE)
            if agent.process.exitcode:
                raise RuntimeError(f"an agent ended with {agent.process.exitcode}")


def _listen(crew: list[_Agent], account: Account, seconds: float) -> None:
    """Note what agents say, until one did or the time is over."""
    by_pipe = {agent.pipe: agent for agent in crew}
    for pipe in wait(list(by_pipe), seconds):
        assert isinstance(pipe, Connection)
        agent = by_pipe[pipe]
        try:
            what, *told = pipe.recv()
        except EOFError:
            raise RuntimeError("an agent ended by itself") from None
        if what == "loaded":
            agent.loaded = True
            account.loads.append((told[0], told[1]))
        else:
            agent.done = told[0]


def _hear(pipe: Connection, *wanted: str) -> Any:
    """What an agent says next of this kind."""
    while pipe.poll(PATIENCE):
        what, told, *_ = pipe.recv()
        if what in wanted:
            return told
    raise TimeoutError("an agent says nothing")
