"""`elect semaphore once every queue locks`: recipes, for scripts."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import click

import kvi
from kvi.cli.app import CONFLICT, NOT_FOUND, Context, Ended, Failed, Seconds, command
from kvi.cli.jobs import Job
from kvi.cli.output import encoding_option, line_of, say_fields, say_json, value_members, written
from kvi.cli.running import (
    WithCommand,
    exit_code,
    grace_after_loss,
    let_go,
    run_while,
    ttl_option,
    words_of,
)
from kvi.cli.values import value_of
from kvi.ops import LeasesOp
from kvi.policy.lease import check_ttl
from kvi.policy.line import DIRECTORY, Place, State, loads
from kvi.policy.lock import CLAIM
from kvi.recipes import Election, Once, Queue, Schedule, Semaphore
from kvi.recipes import Job as QueueJob
from kvi.recipes.recipe import ask

_wait = click.option(
    "-w", "--wait", type=Seconds(0), metavar="SECONDS",
    help="How long to wait; 0 tries once. Default: without end.",
)  # fmt: skip
_conflict = click.option(
    "--conflict-exit-code", "conflict", type=click.IntRange(0, 255), default=CONFLICT,
    show_default=True, metavar="N", help="What to end with if it is not had in time.",
)  # fmt: skip


@command(
    "elect",
    "kvi elect scheduler -- sh -c 'echo leading with fence $KVI_LOCK_FENCE'\n"
    "kvi elect scheduler --value here --wait 0 -- true || echo somebody else leads",
    cls=WithCommand,
)
@click.argument("name")
@click.option(
    "--value", metavar="TEXT", help="What others see, as for `put`. Default: host and process."
)
@_wait
@_conflict
@ttl_option
@grace_after_loss
def elect_(
    context: Context,
    name: str,
    value: str | None,
    wait: float | None,
    conflict: int,
    ttl: float,
    grace: float,
) -> int:
    """Run CMD while leading the election NAME; the exit code is that of CMD.

    CMD finds KVI_LOCK_NAME and KVI_LOCK_FENCE in its environment. If the leadership is lost CMD is
    ended, and the exit code is 3. On etcd it is an election of `etcdctl elect`, on Consul the key
    NAME, acquired.
    """
    words = words_of("elect NAME")
    told = f"{socket.gethostname()} {os.getpid()}" if value is None else value_of(value, "text")
    with context.store() as store:
        election = Election(store, name, told, ttl=ttl)
        if not election.campaign(wait):
            raise Failed(f"somebody else leads {name!r}", conflict)
        env = context.named() | {"KVI_LOCK_NAME": name, "KVI_LOCK_FENCE": str(election.fence)}
        code = run_while(election.lost, f"the leadership of {name!r}", words, env, grace)
        let_go(election.release)
        return code


@command(
    "semaphore",
    "kvi semaphore reports --limit 3 -- echo one of at most three",
    cls=WithCommand,
)
@click.argument("name")
@click.option(
    "--limit", type=click.IntRange(1), required=True, metavar="N",
    help="How many may run at once; the same for all.",
)  # fmt: skip
@_wait
@_conflict
@ttl_option
@grace_after_loss
def semaphore_(
    context: Context,
    name: str,
    limit: int,
    wait: float | None,
    conflict: int,
    ttl: float,
    grace: float,
) -> int:
    """Run CMD while holding one of N permits; the exit code is that of CMD.

    If the permit is lost CMD is ended, and the exit code is 3.
    """
    words = words_of("semaphore NAME --limit N")
    with context.store() as store:
        semaphore = Semaphore(store, name, limit, ttl=ttl)
        if not semaphore.acquire(wait):
            raise Failed(f"others hold all {limit} permits of {name!r}", conflict)
        env = context.named() | {"KVI_LOCK_NAME": name, "KVI_LOCK_FENCE": str(semaphore.fence)}
        code = run_while(semaphore.lost, f"the permit of {name!r}", words, env, grace)
        let_go(semaphore.release)
        return code


class _Unsuccessful(Exception):
    """The command ended with another code than 0, so the next one is to try."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@command(
    "once",
    "kvi once schema-7 -- echo migrating\n"
    "kvi once schema-7 -- echo not again\n"
    "kvi once schema-7 --reset",
    cls=WithCommand,
)
@click.argument("name")
@click.option("--reset", is_flag=True, help="Forget that it was done; runs nothing.")
@_wait
@_conflict
@ttl_option
@grace_after_loss
def once_(
    context: Context,
    name: str,
    reset: bool,
    wait: float | None,
    conflict: int,
    ttl: float,
    grace: float,
) -> int:
    """Run CMD unless it has succeeded before, anywhere; the exit code is 0 then.

    Others wait meanwhile. If CMD ends with another code than 0, that is the exit code, and the next
    one tries. If its turn is lost CMD is ended, and the exit code is 3.
    """
    words = words_of(None if reset else "once NAME")
    if reset and words:
        raise click.UsageError("--reset runs nothing: leave the command away.")
    with context.store() as store:
        once = Once(store, name, ttl=ttl)
        if reset:
            once.reset()
            return 0

        def work(held: kvi.Lock) -> bytes:
            env = context.named() | {"KVI_LOCK_NAME": name, "KVI_LOCK_FENCE": str(held.fence)}
            code = run_while(held.lost, f"the turn at {name!r}", words, env, grace)
            if code:
                raise _Unsuccessful(code)
            return f"{socket.gethostname()} {os.getpid()}".encode()

        try:
            once.run(work, wait)
        except _Unsuccessful as ended:
            return ended.code
        except kvi.LockTimeout:
            raise Failed(f"somebody else is at {name!r}", conflict) from None
        return 0


@command(
    "every",
    "kvi every heartbeat 0.2 --times 1 -- echo here\n"
    "kvi every report '30 4 * * *' --missed skip -- make report   # until Ctrl-C",
    cls=WithCommand,
)
@click.argument("name")
@click.argument("when", metavar="SECONDS|CRON")
@click.option(
    "--missed", type=click.Choice(["last", "all", "skip"]), default="last", show_default=True,
    help="What of the times that came while nobody ran it.",
)  # fmt: skip
@click.option("--at-least-once", is_flag=True, help="Run again what a crash may have ended.")
@click.option(
    "--times", type=click.IntRange(1), metavar="N", help="End after so many runs by this process."
)
@ttl_option
def every_(
    context: Context,
    name: str,
    when: str,
    missed: Any,
    at_least_once: bool,
    times: int | None,
    ttl: float,
) -> int:
    """Run CMD at its times, each time once among all who say this, until Ctrl-C.

    SECONDS are multiples since 1970, a cron line is in UTC. CMD finds KVI_TIME in its environment.
    Its exit code is told on standard error, and changes nothing.
    """
    words = words_of("every NAME SECONDS|CRON")
    try:
        at: float | str = float(when)
    except ValueError:
        at = when
    with context.store() as store:
        schedule = Schedule(store, name, at, missed=missed, at_least_once=at_least_once, ttl=ttl)
        left = [times]

        def run(time: datetime) -> None:
            try:
                with Job(words, context.named() | {"KVI_TIME": time.isoformat()}) as job:
                    code = exit_code(job.wait())
            except Failed as error:  # the next time it may be there again
                click.echo(f"kvi: {error.message}", err=True)
            else:
                if job.asked_to_end:  # a signal that came while the command had it
                    raise Ended(job.asked_to_end[0])
                if code:
                    click.echo(f"kvi: {words[0]!r} ended with {code}", err=True)
            if left[0] is not None:
                left[0] -= 1
                if not left[0]:
                    schedule.close()

        schedule.run(run)
        return 0


@command(
    "queue",
    "kvi queue put mails 'to: ada' --priority 5\n"
    "kvi queue count mails\n"
    "kvi queue get mails --wait 0 -- cat   # done if CMD succeeds\n"
    "kvi queue dead mails\n"
    "kvi queue put mails 'to: bob' && kvi queue get mails --hold 60 >job\n"
    "kvi queue ack mails $(cut -f 1 job)",
    cls=WithCommand,
)
@click.argument("action", type=click.Choice(
    ["put", "get", "ack", "nack", "count", "dead", "retry", "discard"]))  # fmt: skip
@click.argument("name")
@click.argument("value", required=False, metavar="[VALUE|CLAIM|ID]")
@click.option("--priority", type=int, default=0, show_default=True, help="Larger comes first.")
@click.option("--delay", type=Seconds(0), default=0.0, metavar="SECONDS",
              help="Until when nobody gets it.")  # fmt: skip
@click.option("--dedup", metavar="TEXT", help="Put nothing if a job with this text is there.")
@click.option("--max-attempts", type=click.IntRange(1), metavar="N",
              help="After how many tries a job is dead; the same for all.")  # fmt: skip
@_wait
@click.option("--hold", type=Seconds(0, min_open=True), metavar="SECONDS",
              help="Run nothing: print the job, which nobody else gets for so long.")  # fmt: skip
@click.option("--ttl", type=float, default=30.0, show_default=True, metavar="SECONDS",
              help="How soon another gets the job of a process that has crashed.")  # fmt: skip
@grace_after_loss
@encoding_option
def queue_(
    context: Context,
    action: str,
    name: str,
    value: str | None,
    priority: int,
    delay: float,
    dedup: str | None,
    max_attempts: int | None,
    wait: float | None,
    hold: float | None,
    ttl: float,
    grace: float,
    encoding: str,
) -> int:
    """Put jobs into the queue NAME, or do them.

    `put` takes VALUE as `kvi put` does: - is standard input, and @FILE what is in a file.

    `get` runs CMD with the job on its standard input, and KVI_JOB_ID and KVI_JOB_ATTEMPT in its
    environment. If CMD ends with 0 the job is done; else it is given back. The exit code is that of
    CMD, 1 if there was no job in time, 3 if the job was lost, for which CMD is ended.

    `get --hold` prints a line: the claim, the attempt and the value. `ack NAME CLAIM` says that the
    job is done, `nack NAME CLAIM` gives it back; the exit code is 3 if its time was up before.

    `dead` lists the jobs whose attempts are used up. `retry NAME ID` puts one back, with all its
    attempts before it; `discard NAME ID` deletes it; the exit code is 1 if it is not among them.
    """
    runs = action == "get" and hold is None
    words = words_of("queue get NAME" if runs else None)
    wants = action in ("put", "ack", "nack", "retry", "discard")
    if (value is None) is wants or (words and not runs) or (hold is not None and action != "get"):
        raise click.UsageError(
            "kvi queue put NAME VALUE, or get NAME -- CMD, or get NAME --hold SECONDS, "
            "or ack|nack NAME CLAIM, or count|dead NAME, or retry|discard NAME ID"
        )
    data = value_of(value or "", encoding) if action == "put" else b""
    with context.store() as store:
        queue = Queue(store, name, max_attempts=max_attempts, ttl=ttl)
        if runs:
            return _do(context, queue, wait, words, grace)
        if hold is not None:
            return _hold(context, store, queue, wait, hold, encoding)
        if action == "put":
            id = queue.put(data, priority=priority, delay=delay, dedup=dedup)
            say_json({"id": id}) if context.json else click.echo(id)
        elif action == "count":
            count = queue.count()
            say_json({"count": count}) if context.json else click.echo(count)
        elif action == "dead":
            for dead in queue.dead():
                told = {"id": dead.id, "attempts": dead.attempts}
                _tell_job(context, told, dead.value, encoding)
        elif action in ("retry", "discard"):
            end = queue.retry if action == "retry" else queue.discard
            return 0 if end(value or "") else NOT_FOUND
        else:
            job = _held(store, queue, value or "")
            job.ack() if action == "ack" else job.nack(delay)
        return 0


def _do(
    context: Context, queue: Queue, wait: float | None, words: Sequence[str], grace: float
) -> int:
    job = queue.get(wait)
    if job is None:
        return NOT_FOUND
    env = context.named() | {"KVI_JOB_ID": job.id, "KVI_JOB_ATTEMPT": str(job.attempt)}
    with tempfile.TemporaryFile() as stdin:
        stdin.write(job.value)
        stdin.seek(0)
        code = run_while(job.lost, f"the job {job.id}", words, env, grace, stdin)
    if code:
        let_go(job.nack)
    else:
        job.ack()  # or it is not done: it comes again
    return code


def _hold(
    context: Context,
    store: kvi.Kvi,
    queue: Queue,
    wait: float | None,
    hold: float,
    encoding: str,
) -> int:
    """Take a job, and leave it to whoever has read its claim."""
    seconds = check_ttl(hold, store.capabilities, "hold")
    job = queue.get(wait)
    if job is None:
        return NOT_FOUND
    claim = ask(store, queue.name, "get", None, lambda _, call: job._flow.leave(call, seconds))
    told = {"claim": f"{job.id}-{claim:x}", "attempt": job.attempt}
    _tell_job(context, told, job.value, encoding)
    return 0


def _held(store: kvi.Kvi, queue: Queue, claim: str) -> QueueJob:
    """The job that was left so."""
    if re.fullmatch("[0-9a-f]{8}-[0-9a-f]{12}-[0-9a-f]{1,16}", claim) is None:
        raise click.UsageError(
            f"{claim!r} is no claim; `kvi queue get NAME --hold` prints it first."
        )
    id, _, revision = claim.rpartition("-")

    queue.count()  # which tells if it is another recipe's, or has other settings
    claims, claimed = queue._flow.claims, int(revision, 16)
    flow = ask(store, queue.name, "ack", None, lambda _, call: claims.resume(call, id, claimed))
    return QueueJob(store, queue.name, flow)


def _tell_job(context: Context, told: dict[str, Any], value: bytes, encoding: str) -> None:
    if context.json:
        say_json(told | value_members(value))
    else:
        say_fields(*map(str, told.values()), written(value, encoding))


@command(
    "locks",
    "kvi lock nightly -- kvi locks\nkvi locks jobs/ --json",
)
@click.argument("prefix", default="")
def locks_(context: Context, prefix: str) -> int:
    """Show what is held, and who waits: locks, and recipes of any kind, with names below PREFIX.

    A line has the kind, the name, the holders' ids and fences, the seconds that each has left if it
    does not go on (where the store tells), and how many wait. A fence is the revision since when it
    is held. With --json each is an object with kind, name, holders, waiters and fence.
    """
    with context.store() as store:
        everything = list(_found(store, prefix))
        left = _left(store, {one["id"] for found in everything for one in found["holders"]})
        for found in everything:
            for one in found["holders"]:
                one["left"] = left.get(one["id"])
            if context.json:
                say_json(found)
                continue
            holders = ", ".join(map(_holder, found["holders"]))
            click.echo(
                f"{found['kind']} {line_of(found['name'])}: {holders or 'nobody'}, "
                f"{len(found['waiters'])} waiting"
            )
    return 0


def _left(store: kvi.Kvi, ids: set[str]) -> dict[str, float | None]:
    """The seconds that leases have left, as far as the store tells, and tells this user."""
    try:
        told = store._do(LeasesOp({int(id, 16) for id in ids}, None), None)
    except (kvi.NotSupported, kvi.PermissionDenied):
        return {}
    return {f"{lease.id:x}": lease.left for lease in told}


def _holder(one: dict[str, Any]) -> str:
    left = "" if one["left"] is None else f", {one['left']:.0f} s left"
    return f"{one['id']} (fence {one['fence']}{left})"


def _found(store: kvi.Kvi, prefix: str) -> Iterator[dict[str, Any]]:
    """What stands below a prefix, by name."""
    directories: dict[str, list[kvi.KeyValue]] = {}
    lines: dict[str, list[kvi.KeyValue]] = {}
    for entry in store.range(prefix=prefix):
        name, inside, _ = entry.key.partition(f"/{DIRECTORY}/")
        above, _, last = entry.key.rpartition("/")
        if inside:
            directories.setdefault(name, []).append(entry)
        elif entry.lease is not None and last in (".lock", f"{entry.lease:x}"):
            lines.setdefault(above, []).append(entry)
    for name, entries in sorted(directories.items()):
        state = Place(name).read(None, entries)
        if state.line:
            yield _of_state(name, state)
    for name, entries in sorted(lines.items()):
        entries.sort(key=lambda one: one.create_revision)
        locked = entries[0].value in (CLAIM, b"") or entries[0].key.endswith("/.lock")
        ids = [{"id": f"{one.lease:x}", "fence": one.create_revision} for one in entries]
        yield {
            "kind": "lock" if locked else "election",
            "name": name,
            "holders": ids[:1],
            "waiters": ids[1:],
            "fence": ids[0]["fence"],
        }


def _of_state(name: str, state: State) -> dict[str, Any]:
    said = loads(None if state.settings is None else state.settings.value) or state.line[0].said
    kind = said.get("recipe", "unknown")
    # Where leading is a key of its own, the first of the line has it, or is about to.
    holds = (
        state.line[:1]
        if kind == "election"
        else [one for one in state.line if one.said.get("state") == "holds"]
    )
    return {
        "kind": kind,
        "name": name,
        "holders": [{"id": f"{one.lease:x}", "fence": one.created} for one in holds],
        "waiters": [
            {"id": f"{one.lease:x}", "fence": one.created} for one in state.line if one not in holds
        ],
        "fence": max((one.created for one in holds), default=None),
    }
