"""`watch` and `history`: changes as they happen, and those of a key that have."""

from __future__ import annotations

import select
import sys
from tempfile import TemporaryFile
from typing import Any

import click

import kvi
from kvi.cli.app import (
    KEY,
    NOT_FOUND,
    Context,
    Ended,
    command,
    end_option,
    prefix_option,
    start_option,
)
from kvi.cli.jobs import Job, TooLong, grace_option
from kvi.cli.output import (
    encoding_option,
    members,
    say_fields,
    say_json,
    say_table,
    value_members,
    written,
)

_LOOK = 0.25  # seconds between two looks whether anybody reads the output still


@command(
    "watch",
    "kvi watch greeting\n"
    "kvi watch --prefix jobs/ --initial --json\n"
    "kvi watch --prefix config/ --exec 'systemctl reload myservice'\n"
    "kvi watch greeting | head -1",
)
@click.argument("key", required=False, type=KEY)
@prefix_option
@start_option
@end_option
@click.option("--initial", is_flag=True, help="First print what is there now.")
@click.option("--from-revision", type=click.IntRange(1), metavar="N", help="Begin in the past.")
@click.option("--events", type=click.Choice(["put", "delete"]), help="Only these changes.")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="End after so many.")
@click.option(
    "--exec", "run", metavar="CMD",
    help="Run CMD in a shell for each change, with KVI_EVENT, KVI_KEY and KVI_REVISION in its "
    "environment and the value on its standard input.",
)  # fmt: skip
@grace_option("After SIGTERM, how long what --exec runs may take to end.")
@encoding_option
def watch_(
    context: Context,
    key: str | None,
    prefix: str | None,
    start: str | None,
    end: str | None,
    initial: bool,
    from_revision: int | None,
    events: str | None,
    limit: int | None,
    run: str | None,
    grace: float,
    encoding: str,
) -> int:
    """Print each change of KEY, a prefix or a range, until Ctrl-C.

    A line has the kind of the change (PUT, DELETE, RESYNC), the revision, the key and the value. A
    RESYNC says that the store no longer has what came next; the whole state follows it (and --exec
    runs once, without a key). Lost connections are bridged. A signal that ends the watch ends what
    --exec runs, too. A key that is too long for an environment is left empty there, and told.
    """
    kinds = None if events is None else kvi.EventType(events.upper())
    with context.store().watch(
        key,
        prefix=prefix,
        start=start,
        end=end,
        from_revision=from_revision,
        initial=initial,
        events=kinds,
    ) as watch:
        number = 0
        while limit is None or number < limit:
            try:
                event = watch.next(_LOOK)
            except kvi.Timeout:
                if _nobody_reads():
                    raise BrokenPipeError from None
                continue
            number += 1
            _say(context, event, encoding)
            if run is not None:
                context.go_on()
                _run(run, event, context.named(), grace)
    return 0


@command(
    "history",
    "kvi put greeting hello\n"
    "kvi put greeting 'good morning'\n"
    "kvi history greeting\n"
    "kvi history greeting --limit 1 --json",
)
@click.argument("key", type=KEY)
@click.option("-n", "--limit", type=click.IntRange(0), metavar="N", help="The last so many.")
@encoding_option
def history_(context: Context, key: str, limit: int | None, encoding: str) -> int:
    """Print the changes of KEY, newest first, as far back as the store has them.

    Each with its kind (PUT, DELETE), its revision and the new value. `get KEY --revision N` prints
    what was there at any revision. Exit code 1 if there are none.
    """
    events = context.store().history(key, limit=limit)
    if context.json:
        for event in events:
            _say(context, event, encoding)
    else:
        rows = (
            [event.type.value, str(event.revision)]
            + ([] if event.value is None else [written(event.value, encoding)])
            for event in events
        )
        say_table(["change", "revision", "value"], rows, right=["revision"])
    return 0 if events else NOT_FOUND


def _say(context: Context, event: kvi.Event, encoding: str) -> None:
    if context.json:
        made: dict[str, Any] = {"type": event.type.value, "key": event.key}
        if event.type is kvi.EventType.RESYNC:
            made = {"type": event.type.value, "snapshot": list(map(members, event.snapshot or []))}
        if event.value is not None:
            made |= value_members(event.value)
        made["revision"] = event.revision
        if event.initial:
            made["initial"] = True
        say_json(made)
    else:
        value = [] if event.value is None else [written(event.value, encoding)]
        say_fields(event.type.value, str(event.revision), event.key, *value)
        for entry in event.snapshot or []:
            say_fields("NOW", str(entry.revision), entry.key, written(entry.value or b"", encoding))
    sys.stdout.flush()


def _run(command: str, event: kvi.Event, named: dict[str, str], grace: float) -> None:
    """Run the command of a change; what it ends with is told if it is not 0.

    A signal that ends it ends the watch.
    """
    env = named | {
        "KVI_EVENT": event.type.value,
        "KVI_KEY": event.key,
        "KVI_REVISION": str(event.revision),
    }
    value = event.value or b""
    try:
        code, asked_to_end = _ended(command, env, value, grace)
    except TooLong:
        told = f"a key of {len(event.key.encode()):,} bytes is too long for an environment"
        click.echo(f"kvi: KVI_KEY is left empty: {told}", err=True)
        code, asked_to_end = _ended(command, env | {"KVI_KEY": ""}, value, grace)
    if asked_to_end:
        raise Ended(asked_to_end[0])
    if code:
        click.echo(f"kvi: the command ended with {code}: {command}", err=True)


def _ended(command: str, env: dict[str, str], value: bytes, grace: float) -> tuple[int, list[int]]:
    """Run it to its end: what it ended with, and the signals that asked it to."""
    with TemporaryFile() as given:  # a pipe could fill up, or break
        given.write(value)
        given.seek(0)
        with Job(command, env, stdin=given, patience=grace) as job:
            return job.wait(), job.asked_to_end


def _nobody_reads() -> bool:
    """Whether the output is a pipe whose reader has gone: then nobody waits for more of it."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)  # not 0: some systems then tell nothing
    except (OSError, ValueError):
        return False
    return any(found & (select.POLLERR | select.POLLHUP) for _, found in poll.poll(0))
