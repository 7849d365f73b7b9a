"""One worker: a member for as long as it lives, counting under its crew's lock."""

from __future__ import annotations

from multiprocessing.connection import Connection

import kvi

from docs.examples.shared_work.plan import COUNT, LOCK, MEMBER, Job, Note, ledger_key


def work(job: Job, crew: str, name: str, program: Connection) -> None:
    """Be there, and count until the crew has come to its target."""
    with kvi.open(job.uri) as whole, whole.namespace(job.namespace) as store:
        with store.temp_key(MEMBER + name, crew, ttl=job.ttl):
            program.send(Note(crew, name, "here"))
            program.recv()
            while count_one(store, job, crew, name, program):
                pass
        program.send(Note(crew, name, "done"))


def count_one(store: kvi.Kvi, job: Job, crew: str, name: str, program: Connection) -> bool:
    """Read how far the crew is, and write the next number; false at the target."""
    try:
        with store.lock(LOCK + crew, ttl=job.ttl) as lock:
            guard, fence = lock.guard, lock.fence
            last = store.get(COUNT + crew)
            number = 1 + (int(last.text) if last else 0)
            if number > job.target:
                return False
            if number == job.target // 2:
                program.send(Note(crew, name, "inside", number, fence))
                program.recv()  # meanwhile the program kills this process, or stops it for long
            # Who finds `held` false should write nothing. But a pause may also come right after the
            # look: therefore the guard, by which the store refuses what comes too late.
            held = lock.held
            done = store.txn(
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
