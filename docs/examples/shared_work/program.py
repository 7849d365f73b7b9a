"""The whole run: start everybody, strike two of those who hold a lock, see what comes of it.

Each crew counts to its target. Who comes to the middle first is struck while it holds the lock: in
crew a it is killed, in crew b it is stopped until another one has the lock. The processes of crew b
are asyncio programs.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import kvi

from docs.examples.shared_work import aio_worker, worker
from docs.examples.shared_work.account import Account, Strike
from docs.examples.shared_work.plan import CREWS, END, MEMBER, NAMES, Job, Note
from docs.examples.shared_work.watcher import watch

WORK = {"a": worker.work, "b": aio_worker.work}
FATES = {"a": ("killed", signal.SIGKILL), "b": ("stopped", signal.SIGSTOP)}
TTL = 3.0  # seconds; a store may want more
PATIENCE = 60.0  # seconds without any news


def run(uri: str, processes: int, target: int) -> Account:
    """Run it on the store at ``uri``, under a namespace of its own that is removed at the end."""
    namespace = f"work-{secrets.token_hex(4)}"
    with kvi.open(uri) as whole, whole.namespace(namespace) as store:
        if not store.capabilities.shared:
            raise kvi.NotSupported("each process would have a store of its own; name a shared one")
        store.ping()
        job = Job(uri, namespace, max(TTL, store.capabilities.lease_min_ttl), target)
        account = Account(whole.uri, job, store.capabilities)
        try:
            began = time.monotonic()
            lead(store, account, NAMES[:processes])
            account.seconds = time.monotonic() - began
        finally:
            with suppress(kvi.KviError):  # it would hide what went wrong before
                store.delete_range(prefix="")
    return account


def lead(store: kvi.Kvi, account: Account, names: tuple[str, ...]) -> None:
    """Lead workers and watcher from their start to their end."""
    with ExitStack() as stack:
        _, watcher = stack.enter_context(started(watch, account.job))
        hear(watcher)
        workers = {}
        for number, name in enumerate(names):
            crew = CREWS[number % len(CREWS)]
            process, pipe = stack.enter_context(started(WORK[crew], account.job, crew, name))
            workers[pipe] = process
            account.workers.append(name)
        for pipe in workers:
            hear(pipe)
        account.members = [entry.key.removeprefix(MEMBER) for entry in store.range(prefix=MEMBER)]
        for pipe in workers:
            pipe.send("begin")
        listen(workers, account)
        done = {note.worker for note in account.notes if note.what == "done"}
        if len(done) < len(workers) - 1:
            raise RuntimeError(f"only {', '.join(sorted(done))} came to the end")
        with store.watch(prefix=MEMBER) as changes:
            while store.count(prefix=MEMBER):
                changes.next(PATIENCE)
        account.left = {entry.key: entry for entry in store.range()}
        store.store(END, "")
        account.seen = hear(watcher)


def listen(workers: dict[Connection, BaseProcess], account: Account) -> None:
    """Note what the workers say, and strike where it is time, until all of them have ended."""
    talking = set(workers)
    while talking:
        ready = wait(talking, PATIENCE)
        if not ready:
            raise TimeoutError("the workers do not get on")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                note = pipe.recv()
            except (EOFError, ConnectionResetError):
                talking.remove(pipe)
                continue
            account.notes.append(note)
            if note.what == "inside":
                strike_or_pass(note, workers[pipe], account.strikes)
                with suppress(BrokenPipeError):  # it has been killed
                    pipe.send("go on")


def strike_or_pass(note: Note, process: BaseProcess, strikes: dict[str, Strike]) -> None:
    """A worker is in the middle, and has its crew's lock: is it the first, or the next?"""
    assert process.pid is not None
    strike = strikes.get(note.crew)
    if strike is None:
        what, sign = FATES[note.crew]
        os.kill(process.pid, sign)
        strikes[note.crew] = Strike(what, note, process.pid, time.time())
    elif strike.heir is None:
        strike.heir, strike.after = note, time.time() - strike.time
        if strike.what == "stopped":
            os.kill(strike.pid, signal.SIGCONT)


@contextmanager
def started(
    function: Callable[..., None], *arguments: object
) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process, and the pipe to it; at the end it is ended, however it stands."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=function, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()


def hear(pipe: Connection) -> Any:
    """The next thing that a process says."""
    if not pipe.poll(PATIENCE):
        raise TimeoutError("a process says nothing")
    return pipe.recv()
