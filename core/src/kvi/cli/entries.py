"""`get put del ls range count tas cas`: single keys and ranges."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import click

import kvi
from kvi.cli.app import (
    KEY,
    NOT_FOUND,
    Context,
    Failed,
    command,
    end_option,
    prefix_option,
    start_option,
)
from kvi.cli.output import (
    encoding_option,
    members,
    on_terminal,
    say_fields,
    say_json,
    say_styled,
    say_table,
    say_value,
    written,
)
from kvi.cli.values import value_of
from kvi.text import prefix_end

UNASKED = 1000  # keys that a script may delete without a word
_MANY = 500  # keys of one folder after which the rest of it is skipped instead of read


_revision = click.option(
    "--revision",
    type=click.IntRange(0),
    metavar="N",
    help="As it was when the store was at this revision.",
)


@command(
    "get",
    "kvi put greeting hello\n"
    "kvi get greeting\n"
    "kvi get greeting | kvi put copy -\n"
    "kvi get greeting --json\n"
    "kvi get --prefix greet\n"
    "kvi get greeting --revision 1\n"
    "kvi get nothing || echo not there",
)
@click.argument("key", required=False, type=KEY)
@prefix_option
@_revision
@encoding_option
def get_(
    context: Context, key: str | None, prefix: str | None, revision: int | None, encoding: str
) -> int:
    """Print the value of KEY, and nothing else; exit code 1 if it is not there.

    On a terminal a newline follows, and what could steer it is written as an escape; in `kvi shell`
    a newline follows always. With --prefix it is all keys that begin so, with their values, as by
    `range`.
    """
    if key is None:
        if prefix is None:
            raise click.UsageError("Missing argument 'KEY', or --prefix.")
        found = context.store().range(prefix=prefix, revision=revision)
        return _say_range(context, found, encoding)
    if prefix is not None:
        raise click.UsageError("Give KEY or --prefix, not both.")
    entry = context.store().get(key, revision=revision)
    if entry is None:
        if context.json:
            say_json(None)
        elif sys.stderr.isatty():
            click.echo(f"kvi: {key!r} is not there", err=True)
        return NOT_FOUND
    if context.json:
        say_json(members(entry))
    else:
        # Among the output of other commands, it ends where the next one begins.
        say_value(entry.value or b"", encoding, b"" if context.kept is None else b"\n")
    return 0


@command(
    "put",
    "kvi put greeting hello\n"
    "printf hello | kvi put greeting -\n"
    "kvi put session/ada here --ttl 30\n"
    "kvi put hosts @/etc/hosts\n"
    "kvi put nick @@ada   # the value @ada\n"
    "kvi put key 00ff --as hex\n"
    "kvi put -- -key -value",
)
@click.argument("key", type=KEY)
@click.argument("value")
@click.option("--lease", type=int, metavar="ID", help="The lease that the key shall vanish with.")
@click.option("--ttl", type=float, metavar="SECONDS", help="The key vanishes so long afterwards.")
@encoding_option
def put_(
    context: Context, key: str, value: str, lease: int | None, ttl: float | None, encoding: str
) -> int:
    """Store VALUE under KEY; - is read from standard input, and @FILE from a file.

    A value that begins with @ is written with @@.
    """
    revision = context.store().store(key, value_of(value, encoding), lease=lease, ttl=ttl)
    if context.json:
        say_json({"key": key, "revision": revision})
    return 0


@command(
    "del",
    "kvi put greeting hello\n"
    "kvi del greeting\n"
    "kvi put tmp/a 1\n"
    "kvi del --prefix tmp/ --dry-run\n"
    "kvi del --prefix tmp/",
)
@click.argument("keys", nargs=-1, type=KEY, metavar="[KEY]...")
@prefix_option
@start_option
@end_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask, however many they are.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
def del_(
    context: Context,
    keys: tuple[str, ...],
    prefix: str | None,
    start: str | None,
    end: str | None,
    yes: bool,
    dry_run: bool,
) -> int:
    """Delete each KEY, or a range of keys, and print how many there were; exit code 1 if none.

    Before a range is deleted, a terminal is asked. Without one, more than 1,000 keys want --yes.
    """
    ranged = not (prefix is None and start is None and end is None)
    if ranged and prefix is None and not (start or end):
        raise click.UsageError('--start and --end are empty; --prefix "" deletes everything.')
    if bool(keys) == ranged:
        raise click.UsageError(
            'Give keys, or a range: --prefix, --start, --end. --prefix "" is all.'
        )
    store = context.store()
    if dry_run:
        found = sum(store.get(key) is not None for key in dict.fromkeys(keys))
        return _deleted(context, store.count(start, end, prefix=prefix) if ranged else found)
    if ranged:
        if not (yes or store._scope.read_only):
            _ask(store.count(start, end, prefix=prefix))
            context.go_on()
        return _deleted(context, store.delete_range(start, end, prefix=prefix))
    deleted = 0
    for key in keys:
        context.go_on()
        deleted += store.delete(key)
    return _deleted(context, deleted)


def _ask(count: int) -> None:
    """Whether so many keys are to be deleted. Raises `Failed` if not."""
    confirm(
        f"Delete {count:,} keys?",
        f"these are {count:,} keys; --yes deletes them, --dry-run counts them",
        "nothing was deleted",
        at_terminal=count > 0,
        in_script=count > UNASKED,
    )


def confirm(
    question: str, refusal: str, declined: str, *, at_terminal: bool, in_script: bool
) -> None:
    """Let who sits at a terminal agree, if ``at_terminal``; refuse a script, if ``in_script``.

    Raises `Failed` if nobody agrees.
    """
    if not sys.stdin.isatty():
        if in_script:
            raise Failed(refusal)
        return
    if not at_terminal:
        return
    if not sys.stderr.isatty():
        raise Failed(f"nobody can be asked; {refusal}")
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort as ended:
        click.echo(err=True)
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise ended.__context__ from None
        agreed = False
    if not agreed:
        raise Failed(declined, NOT_FOUND)


def _deleted(context: Context, count: int) -> int:
    say_json({"deleted": count}) if context.json else click.echo(count)
    return 0 if count else NOT_FOUND


@command("ls", "kvi put app/rate 10\nkvi put app/db/host ada\nkvi ls\nkvi ls app/\nkvi ls -r app/")
@click.argument("prefix", default="", type=KEY)
@click.option("-r", "--recursive", is_flag=True, help="All keys, whole.")
@click.option("--delimiter", default="/", show_default=True, metavar="TEXT", help="Ends a level.")
def ls_(context: Context, prefix: str, recursive: bool, delimiter: str) -> int:
    """List the keys that begin with PREFIX; of those in a deeper level, the level.

    A level ends with the delimiter. `ls -r`, `range` and `count` take the same keys one by one.
    """
    if not delimiter:
        raise click.UsageError("--delimiter is at least one character; -r lists without levels.")
    store = context.store()
    names: Iterator[tuple[str, bool]]
    if recursive:
        names = ((entry.key, False) for entry in store.range(prefix=prefix, keys_only=True))
    else:
        names = levels(store, prefix, delimiter)
    found = False
    for name, is_level in names:
        found = True
        if context.json:
            say_json({"level" if is_level else "key": name})
        elif on_terminal() and is_level:
            say_styled(name, bold=True)
            click.echo()
        else:
            say_fields(name)
    return 0 if found else NOT_FOUND


def levels(store: kvi.Kvi, prefix: str, delimiter: str) -> Iterator[tuple[str, bool]]:
    """Keys and next levels below a prefix, in order, and which is which.

    Long levels are skipped, not read. A key that ends with the delimiter is the key of a level
    itself, and stands as a key where that level is listed.
    """
    start: str | None = prefix
    while start is not None:
        level, count = None, 0
        end = prefix_end(prefix)
        for entry in store.range(start or None, end, keys_only=True):
            rest = entry.key[len(prefix) :]
            first, found, _ = rest.partition(delimiter)
            name = prefix + first + found
            if not found:
                yield entry.key, False
            elif name != level:
                level, count = name, 0
                yield name, True
            else:
                count += 1
                if count >= _MANY:
                    start = prefix_end(level)
                    break
        else:
            return


def _span(function: Any) -> Any:
    """The keys of a listing: a prefix, or bounds; all without any."""
    for decorate in (
        click.option("--end", type=KEY, metavar="KEY", help="The keys before this one."),
        click.option("--start", type=KEY, metavar="KEY", help="The keys from this one on."),
        click.argument("prefix", required=False, type=KEY),
    ):
        function = decorate(function)
    return function


@command(
    "range",
    "kvi put a 1\n"
    "kvi put b 2\n"
    "kvi range --start a --end c\n"
    "kvi range a --json\n"
    "kvi range --reverse --limit 1\n"
    "kvi range --revision 1",
)
@_span
@_revision
@click.option("--limit", type=click.IntRange(0), metavar="N", help="At most so many.")
@click.option("--reverse", is_flag=True, help="From the last key down.")
@click.option("--keys-only", is_flag=True, help="Without values.")
@encoding_option
def range_(
    context: Context,
    prefix: str | None,
    start: str | None,
    end: str | None,
    revision: int | None,
    limit: int | None,
    reverse: bool,
    keys_only: bool,
    encoding: str,
) -> int:
    """Print the entries whose keys begin with PREFIX, or are in [--start, --end), in key order.

    Without any, all. Exit code 1 if there are none.
    """
    found = context.store().range(
        start,
        end,
        prefix=prefix,
        limit=limit,
        reverse=reverse,
        keys_only=keys_only,
        revision=revision,
    )
    return _say_range(context, found, encoding, keys_only)


def _say_range(
    context: Context, found: Iterable[kvi.KeyValue], encoding: str, keys_only: bool = False
) -> int:
    entries = iter(found)
    first = next(entries, None)
    if first is None:
        return NOT_FOUND
    shown = chain([first], entries)
    if context.json:
        for entry in shown:
            say_json(members(entry))
    elif keys_only:
        say_table(["key"], ([entry.key] for entry in shown))
    else:
        rows = ([entry.key, written(entry.value or b"", encoding)] for entry in shown)
        say_table(["key", "value"], rows)
    return 0


@command("count", "kvi put a 1\nkvi count\nkvi count a\nkvi count --start b")
@_span
def count_(context: Context, prefix: str | None, start: str | None, end: str | None) -> int:
    """Count the keys that begin with PREFIX, or are in [--start, --end); without any, all."""
    count = context.store().count(start, end, prefix=prefix)
    say_json({"count": count}) if context.json else click.echo(count)
    return 0


@command(
    "tas", "kvi tas leader --absent ada\nkvi tas leader ada grace\nkvi tas leader grace --delete"
)
@click.argument("key", type=KEY)
@click.argument("values", nargs=-1, required=False, metavar="[TEST] [SET]")
@click.option("--absent", is_flag=True, help="Instead of TEST: the key is not there.")
@click.option("--delete", is_flag=True, help="Instead of SET: delete the key.")
@encoding_option
def tas_(
    context: Context, key: str, values: tuple[str, ...], absent: bool, delete: bool, encoding: str
) -> int:
    """If the value of KEY is TEST make it SET, atomically; exit code 1 if it is not.

    TEST and SET are as VALUE is for `put`.
    """
    if len(values) + absent + delete != 2:
        raise click.UsageError("Give TEST or --absent, and SET or --delete.")
    if values == ("-", "-"):
        raise click.UsageError("Standard input can be read only once: TEST or SET is -, not both.")
    rest = list(values)
    test = None if absent else value_of(rest.pop(0), encoding)
    new = None if delete else value_of(rest.pop(0), encoding)
    done = context.store().tas(key, test, new)
    if context.json:
        say_json({"key": key, "set": done})
    return 0 if done else NOT_FOUND


@command(
    "cas",
    "kvi put greeting hi\n"
    "kvi del greeting\n"
    "kvi cas greeting 0 hello\n"
    "kvi cas greeting 0 again || echo somebody was faster",
)
@click.argument("key", type=KEY)
@click.argument("revision", type=click.IntRange(0))
@click.argument("value")
@encoding_option
def cas_(context: Context, key: str, revision: int, value: str, encoding: str) -> int:
    """Store VALUE if the revision of KEY is REVISION (0: it is not there); else exit code 1.

    VALUE is as for `put`.
    """
    new = context.store().cas(key, revision, value_of(value, encoding))
    if context.json:
        say_json({"key": key, "set": new is not None, "revision": new})
    return NOT_FOUND if new is None else 0
