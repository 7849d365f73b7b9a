"""`mv cp`: another name for a key, or for all keys of a prefix, within one store.

Each step is one transaction, on the condition that nothing it reads has changed; where all fits
into one, it is atomic. A step that is too large for the store is halved.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import click

import kvi
from kvi.cli.app import KEY, NOT_FOUND, Context, Failed, command
from kvi.cli.output import line_of, say_fields, say_json
from kvi.model import Operation
from kvi.text import check_key

F = TypeVar("F", bound=Callable[..., Any])

_LARGEST = 50_000  # keys of a step where the store sets no limit: they are all in memory
_PAUSE, _LONGEST = 0.001, 0.1  # seconds until a step is tried again: the first time, and any


class _Taken(Exception):
    """Something is there already under the new name."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class _Refused(NamedTuple):
    """Something is in the way, after so many keys were done."""

    key: str
    done: int


class _Plan(NamedTuple):
    """What is to be done, and how."""

    store: kvi.Kvi
    names: dict[str, str]  # the new key of each old one
    move: bool
    force: bool

    def most(self) -> int:
        """How many keys are renamed by one transaction."""
        limit = self.store.capabilities.max_txn_ops
        each = 2 + self.move + (not self.force)  # a compare of the old key, a put, and so on
        return _LARGEST if limit is None else max(1, limit // each)

    def step(self, keys: Sequence[str]) -> int:
        """Rename these in one transaction; how many were there.

        Raises `_Taken`, and `Contention` if others kept changing the keys until the time-out.
        """
        until, longest = time.monotonic() + self.store._seconds(None), _PAUSE
        while True:
            found = self._there(keys)
            if not found or self.store.txn(*self._change(found)):
                return len(found)
            if not self.force:
                self._refuse_taken(found)
            if time.monotonic() > until:
                raise kvi.Contention("others kept changing these keys until the time was up")
            time.sleep(random.uniform(0, longest))  # noqa: S311
            longest = min(2 * longest, _LONGEST)

    def _there(self, keys: Sequence[str]) -> list[kvi.KeyValue]:
        """Those that are there, as they are."""
        read = self.store.txn(then=[kvi.Get(key) for key in keys])
        return [entry for entry in read.results if isinstance(entry, kvi.KeyValue)]

    def _change(self, found: list[kvi.KeyValue]) -> tuple[list[kvi.Compare], list[Operation]]:
        when = [kvi.Key(entry.key).revision == entry.revision for entry in found]
        if not self.force:
            when += [kvi.Key(self.names[entry.key]).absent for entry in found]
        then: list[Operation] = []
        for entry in found:
            lease = entry.lease if self.move else None
            then.append(kvi.Put(self.names[entry.key], entry.value or b"", lease))
            if self.move:
                then.append(kvi.Delete(entry.key))
        return when, then

    def _refuse_taken(self, found: list[kvi.KeyValue]) -> None:
        taken = self._there([self.names[entry.key] for entry in found])
        if taken:
            raise _Taken(taken[0].key)


def _options(function: F) -> F:
    for option in (
        click.option("--dry-run", is_flag=True, help="Only show what would be done."),
        click.option("-f", "--force", is_flag=True, help="Replace what is there already."),
        click.option("--prefix", is_flag=True, help="All keys that begin with SOURCE."),
        click.argument("target", type=KEY),
        click.argument("source", type=KEY),
    ):
        function = option(function)
    return function


@command(
    "mv",
    "kvi put draft hello\n"
    "kvi mv draft letter\n"
    "kvi put app/rate 10\n"
    "kvi mv --prefix app/ service/ --dry-run\n"
    "kvi mv --prefix app/ service/",
)
@_options
def mv_(
    context: Context, source: str, target: str, prefix: bool, force: bool, dry_run: bool
) -> int:
    """Rename the key SOURCE to TARGET; with --prefix, all keys that begin so.

    What is there under a new name is not replaced without --force: the exit code is 1 then, and
    nothing is touched. It is one step if it fits into a transaction of the store, and says so if
    not. A lease stays that of its key.
    """
    return _rename(context, source, target, prefix, force, dry_run, move=True)


@command(
    "cp",
    "kvi put note hello\nkvi cp note note.old\nkvi cp --prefix note backup/note",
)
@_options
def cp_(
    context: Context, source: str, target: str, prefix: bool, force: bool, dry_run: bool
) -> int:
    """Copy the key SOURCE to TARGET; with --prefix, all keys that begin so.

    As `mv`, but what was there stays, and the copies are permanent. `copy` is for other stores.
    """
    return _rename(context, source, target, prefix, force, dry_run, move=False)


def _rename(
    context: Context,
    source: str,
    target: str,
    prefix: bool,
    force: bool,
    dry_run: bool,
    *,
    move: bool,
) -> int:
    if source == target or (prefix and (source.startswith(target) or target.startswith(source))):
        raise click.UsageError(
            "SOURCE and TARGET are the same, or one lies within the other; "
            "go by a third name that does not."
        )
    store = context.store()
    if not dry_run:
        store._scope.ensure_writable()
    keys = _keys(store, source, prefix)
    if not keys:
        return _nothing(source)
    longest = store.capabilities.max_key
    names = {key: check_key(target + key[len(source) :], longest) for key in keys}
    if not force:
        there = set(_keys(store, target, prefix))
        taken = [new for new in names.values() if new in there]
        if taken:
            return _refuse(taken[0], len(taken), 0)
    if dry_run:
        for key, new in names.items():
            say_json({"key": key, "to": new}) if context.json else say_fields(key, new)
        return 0
    plan = _Plan(store, names, move, force)
    done = _steps(context, plan, keys)
    if isinstance(done, _Refused):
        return _refuse(done.key, 1, done.done)
    if not done:  # others were faster
        return _nothing(source)
    say_json({"moved" if move else "copied": done}) if context.json else click.echo(done)
    return 0


def _nothing(source: str) -> int:
    click.echo(f"kvi: nothing is there: {line_of(source)}", err=True)
    return NOT_FOUND


def _steps(context: Context, plan: _Plan, keys: list[str]) -> int | _Refused:
    size = plan.most()
    waiting = [keys[at : at + size] for at in range(0, len(keys), size)]
    if len(waiting) > 1:
        click.echo(
            f"kvi: {len(keys):,} keys do not fit into one transaction; "
            f"they go in {len(waiting):,} steps, each of them atomic",
            err=True,
        )
    done = 0
    try:
        while waiting:
            context.go_on()
            part = waiting.pop(0)
            try:
                done += plan.step(part)
            except _Taken as taken:
                return _Refused(taken.key, done)
            except kvi.ValueTooLarge:
                if len(part) == 1:
                    raise
                middle = len(part) // 2
                waiting[:0] = [part[:middle], part[middle:]]
                click.echo(
                    "kvi: the values are too large for one transaction; more steps", err=True
                )
    except BaseException:  # Ctrl-C too: whoever comes back must know that it is half done
        if done:
            click.echo(f"kvi: broken off; {done:,} of {len(keys):,} keys are done", err=True)
        raise
    return done


def _keys(store: kvi.Kvi, source: str, prefix: bool) -> list[str]:
    if prefix:
        return [entry.key for entry in store.range(prefix=source, keys_only=True)]
    return [] if store.get(source) is None else [source]


def _refuse(key: str, count: int, done: int) -> int:
    others = f", and {count - 1:,} others" if count > 1 else ""
    so_far = f"; {done:,} keys were done before" if done else "; nothing was touched"
    raise Failed(
        f"{key!r} is there already{others}; --force replaces what is there{so_far}", NOT_FOUND
    )
