"""The same worker as an asyncio program. The pipe to the program is read on a thread."""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection

import kvi

from docs.examples.shared_work.plan import COUNT, LOCK, MEMBER, Job, Note, ledger_key


def work(job: Job, crew: str, name: str, program: Connection) -> None:
    """Be there, and count until the crew has come to its target."""
    asyncio.run(be_there(job, crew, name, program))


async def be_there(job: Job, crew: str, name: str, program: Connection) -> None:
    """The same, in the loop."""
    async with kvi.aio.open(job.uri) as whole, whole.namespace(job.namespace) as store:
        async with store.temp_key(MEMBER + name, crew, ttl=job.ttl):
            program.send(Note(crew, name, "here"))
            await asyncio.to_thread(program.recv)
            while await count_one(store, job, crew, name, program):
                pass
        program.send(Note(crew, name, "done"))


async def count_one(
    store: kvi.aio.AsyncKvi, job: Job, crew: str, name: str, program: Connection
) -> bool:
    """Read how far the crew is, and write the next number; false at the target."""
    try:
        async with store.lock(LOCK + crew, ttl=job.ttl) as lock:
            guard, fence = lock.guard, lock.fence
            last = await store.get(COUNT + crew)
            number = 1 + (int(last.text) if last else 0)
            if number > job.target:
                return False
            if number == job.target // 2:
                program.send(Note(crew, name, "inside", number, fence))
                await asyncio.to_thread(program.recv)  # stopped meanwhile, as `worker` tells
            held = lock.held
            done = await store.txn(
                when=[guard],
                then=[
                    kvi.Put(COUNT + crew, str(number)),
                    kvi.Put(ledger_key(crew, number), f"{name} {fence}"),
                ],
            )
            what = "counted" if done else "refused"
            program.send(Note(crew, name, what, number, fence, done.revision or 0, held))
    except kvi.LeaseLost:
        pass  # the lock was lost, so says the end of its block; the next attempt takes it anew
    return True
