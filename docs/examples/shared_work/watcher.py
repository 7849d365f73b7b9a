"""One process that does nothing but watch."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

import kvi

from docs.examples.shared_work.plan import END, LOCK, Job, Seen


def watch(job: Job, program: Connection) -> None:
    """Note every change until the end is announced, then tell them all."""
    with (
        kvi.open(job.uri) as whole,
        whole.namespace(job.namespace) as store,
        store.watch(prefix="") as changes,
    ):
        program.send("watching")
        seen = []
        for event in changes:
            if event.key == END:
                break
            if not event.key.startswith(LOCK):
                value = None if event.value is None else event.value.decode()
                seen.append(Seen(event.key, value, event.revision, time.time()))
        program.send(seen)
