"""`export copy`: entries from here to there, streamed, in bounded memory.

*Writing.* Entries go out in batches, one transaction each, as large as the store takes. Puts of the
same values do no harm twice, so that a batch whose fate is unknown is sent again, and a run that
was killed is simply begun again. `importing` writes so, too.

*Copying* goes along both stores in the order of their keys and writes what differs. So a second run
finds what the first one did, and ``--verify`` is the same walk without writing.

*One store by two names* (a link, another name of the host) is found out by asking: what is written
to the target must not be seen in the source.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import click

import kvi
from kvi.cli import records
from kvi.cli.app import KEY, NOT_FOUND, Context, Failed, command, uri_file, uri_in
from kvi.cli.output import bare, progress, say_json
from kvi.errors import InvalidArgument, KviError, ValueTooLarge
from kvi.text import prefix_end
from kvi.uri import StoreUri

PATIENT = kvi.RetryPolicy(idempotent=True)
_OPERATIONS, _BYTES = 100, 256 * 1024  # of a batch, where the store takes as much


class Batches:
    """Puts and deletes, sent in transactions as large as the store takes.

    ``go_on`` raises if nothing more is to be sent; ``sent`` is told how many were.
    """

    def __init__(
        self, store: kvi.Kvi, go_on: Callable[[], object], sent: Callable[[int], object]
    ) -> None:
        self._store = store
        self._go_on = go_on
        self._sent = sent
        self._most = min(store.capabilities.max_txn_ops or _OPERATIONS, _OPERATIONS)
        self._waiting: dict[str, kvi.Put | kvi.Delete] = {}
        self._size = 0

    def put(self, key: str, value: bytes) -> None:
        """Store an entry, with this batch or the next."""
        self._add(kvi.Put(key, value), len(key.encode()) + len(value))

    def delete(self, key: str) -> None:
        """Delete a key, with this batch or the next."""
        self._add(kvi.Delete(key), len(key.encode()))

    def flush(self) -> None:
        """Send what waits."""
        waiting, self._waiting, self._size = self._waiting, {}, 0
        if waiting:
            self._send(list(waiting.values()))

    def _add(self, operation: kvi.Put | kvi.Delete, size: int) -> None:
        full = self._size + size > _BYTES or len(self._waiting) >= self._most
        if full or operation.key in self._waiting:  # a transaction writes a key once
            self.flush()
        self._waiting[operation.key] = operation
        self._size += size

    def _send(self, operations: list[kvi.Put | kvi.Delete]) -> None:
        self._go_on()
        try:
            self._store.txn(then=operations)
        except (ValueTooLarge, InvalidArgument):
            # Nothing was sent: the store takes less at once, or one of them is too large.
            if len(operations) == 1:
                self._send_one(operations[0])
            else:
                middle = len(operations) // 2
                self._send(operations[:middle])
                self._send(operations[middle:])
        else:
            self._sent(len(operations))

    def _send_one(self, operation: kvi.Put | kvi.Delete) -> None:
        if isinstance(operation, kvi.Put):
            self._store.store(operation.key, operation.value)
        else:
            self._store.delete(operation.key)
        self._sent(1)


# -- export ----------------------------------------------------------------------------------------


@command(
    "export",
    "kvi put greeting hello\n"
    "kvi export backup.jsonl\n"
    "kvi export --prefix app/ - | gzip > app.jsonl.gz\n"
    "kvi export --resume backup.jsonl",
)
@click.argument("file", type=click.Path(allow_dash=True, dir_okay=False))
@click.option("--prefix", type=KEY, default="", metavar="TEXT", help="Only the keys that begin so.")
@click.option("--leased", is_flag=True, help="Also the keys that vanish with a lease.")
@click.option("--resume", is_flag=True, help="Go on with an export that was broken off.")
def export_(context: Context, file: str, prefix: str, leased: bool, resume: bool) -> int:
    """Write the entries to FILE as JSON Lines; - is standard output.

    All of one revision, where the store can read so. Keys that vanish with a lease are left out
    unless asked for.
    """
    if resume and file == "-":
        raise click.UsageError("--resume needs a file, to go on with.")
    store = context.store()
    done = _resumed(file, records.Header(store.uri, prefix, leased)) if resume else _Part()
    start = prefix or None if done.last is None else done.last + "\0"
    stop = prefix_end(prefix)
    found = store.range(start, stop)  # before the file is there, so that it is not left behind
    total = store.count(start, stop) + done.count if sys.stderr.isatty() else None
    count, left_out = done.count, 0
    with _output(file, done.size if resume else None) as output:
        try:
            with progress("exporting", total, context.json) as tell:
                if done.size == 0:
                    output.write(records.header(store.uri, prefix, leased).encode() + b"\n")
                for entry in found:
                    if entry.lease is not None and not leased:
                        left_out += 1
                        continue
                    output.write(records.line(entry).encode() + b"\n")
                    count += 1
                    tell(count)
            output.write(records.end(count).encode() + b"\n")
            output.flush()
        except (Exception, KeyboardInterrupt):
            if file != "-":
                click.echo(f"kvi: {file} is not whole: go on with export --resume", err=True)
            raise
    if context.json and file != "-":
        say_json({"exported": count, "left_out": left_out})
    else:
        left = f", {left_out:,} leased keys left out (--leased takes them)" if left_out else ""
        click.echo(f"exported {count:,} entries{left}", err=True)
    return 0


@dataclass(frozen=True, slots=True)
class _Part:
    """What an export that was broken off has: bytes that are whole lines, entries, the last key."""

    size: int = 0
    count: int = 0
    last: str | None = None


def _resumed(file: str, wanted: records.Header) -> _Part:
    """How far a file is; refused if it is of something else, or whole."""
    last, count, size = None, 0, 0
    with Path(file).open("rb") as written:
        for number, text in enumerate(written, 1):
            if not text.endswith(b"\n"):
                break  # it was broken off within this line
            record = parsed(file, number, text)
            if isinstance(record, records.End):
                raise Failed(f"{file} is whole: nothing is left to export")
            if isinstance(record, records.Entry):
                last, count = record.key, count + 1
            elif record != wanted:
                raise Failed(
                    f"{file} is an export of {record.store} with the prefix {record.prefix!r}"
                    f"{' and leased keys' if record.leased else ''}: ask for the same"
                )
            size += len(text)
    return _Part(size, count, last)


@contextmanager
def _output(file: str, size: int | None) -> Iterator[BinaryIO]:
    """Where to write; ``size``: behind so many bytes of a file that is there."""
    if file == "-":
        yield bare(sys.stdout).buffer  # the lines have no control characters
        return
    path = Path(file)
    if size is not None:
        with path.open("r+b") as broken_off:
            broken_off.truncate(size)
            broken_off.seek(size)
            yield broken_off
        return
    try:
        output = path.open("xb" if path.is_file() or not path.exists() else "wb")  # a pipe is there
    except FileExistsError:
        raise Failed(f"{file} is there already: remove it, or go on with --resume") from None
    with output:
        yield output


def parsed(file: str, number: int, text: bytes) -> records.Header | records.Entry | records.End:
    """What a line of an export says; raises `Failed` with its number."""
    try:
        return records.parse(text)
    except InvalidArgument as error:
        raise Failed(f"{file}, line {number:,}: {error.message}") from None


# -- copy ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Walk:
    """What a walk along two stores has found."""

    read: int = 0
    written: int = 0
    equal: int = 0
    different: int = 0
    missing: int = 0
    extra: int = 0
    left_out: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, what: str, key: str) -> None:
        """Count a difference; the first ones are kept to show."""
        setattr(self, what, getattr(self, what) + 1)
        if len(self.examples) < 5:
            self.examples.append(f"{what}: {key!r}")


def walk(
    source: kvi.Kvi,
    target: kvi.Kvi,
    prefix: str,
    leased: bool,
    found: _Walk,
    tell: Callable[[int], object],
) -> Iterator[tuple[str, bytes | None]]:
    """Go along both; yields each key that differs, with the value that the target should have.

    ``None`` is for a key that only the target has.
    """
    theirs = iter(target.range(prefix=prefix))
    other = next(theirs, None)

    def extra(one: kvi.KeyValue) -> Iterator[tuple[str, bytes | None]]:
        # What lives by a lease is somebody's at work: a lock, a member. It is no leftover.
        if one.lease is not None and not leased:
            found.left_out += 1
        else:
            found.note("extra", one.key)
            yield one.key, None

    for entry in source.range(prefix=prefix):
        found.read += 1
        tell(found.read)
        while other is not None and other.key < entry.key:
            yield from extra(other)
            other = next(theirs, None)
        same = other if other is not None and other.key == entry.key else None
        if not leased and (entry.lease is not None or (same and same.lease is not None)):
            found.left_out += 1
        elif same is None:
            found.note("missing", entry.key)
            yield entry.key, entry.value or b""
        elif same.value != entry.value or same.lease is not None:  # it shall be permanent
            found.note("different", entry.key)
            yield entry.key, entry.value or b""
        else:
            found.equal += 1
        if same is not None:
            other = next(theirs, None)
    for left in chain(() if other is None else (other,), theirs):
        yield from extra(left)


class SameStore(InvalidArgument):
    """Two names of one store, of which one is to be copied to the other."""


def refuse_links(source: str, target: str) -> None:
    """Raise `SameStore` if two paths name one file.

    Before it is opened: a database that is open by two names may be damaged, and shows neither what
    the other does.
    """
    one, two = (StoreUri.parse(uri).path for uri in (source, target))
    with suppress(OSError):
        if os.path.realpath(one) != os.path.realpath(two) and Path(one).samefile(two):
            raise SameStore(f"{one} and {two} are the same file")


def refuse_overlap(source: kvi.Kvi, target: kvi.Kvi, prefix: str) -> None:
    """Raise `SameStore` if the one is the other, or a part of it.

    A key that vanishes soon is written to the target, at a place that is in both if the stores are
    one. The source is only read.
    """
    here, there = source._scope.prefix, target._scope.prefix
    place = max(here + prefix, there + prefix, key=len)
    if not (place.startswith(here + prefix) and place.startswith(there + prefix)):
        return  # they are apart, whatever the stores are
    mark = f"{place}kvi-copy-{secrets.token_hex(8)}"
    with _marked(target, mark.removeprefix(there)):
        if source.get(mark.removeprefix(here)) is not None:
            raise SameStore(
                f"{source.uri} and {target.uri} are one store, and the one is the other or a part "
                "of it: copy between separate ones"
            )


@contextmanager
def _marked(store: kvi.Kvi, key: str) -> Iterator[None]:
    try:
        mark = store.temp_key(key, b"")
    except (kvi.PermissionDenied, kvi.NotSupported):  # keys, but no leases
        store.store(key, b"")
        try:
            yield
        finally:
            store.delete(key)
    else:
        with mark:
            yield


@command(
    "copy",
    "kvi copy sqlite:app.db etcd://127.0.0.1:2379/app --dry-run\n"
    "kvi copy sqlite:app.db etcd://127.0.0.1:2379/app --verify\n"
    "kvi copy etcd://127.0.0.1:2379 consul://127.0.0.1:8500 --prefix config/\n"
    "kvi copy --uri-file etcd.uri --to-uri-file consul.uri --verify",
)
@click.argument("uris", nargs=-1, metavar="[SOURCE] [TARGET]")
@click.option(
    "--to-uri-file", "to", type=uri_file, metavar="FILE", help="A file that holds the target's URI."
)
@click.option("--prefix", type=KEY, default="", metavar="TEXT", help="Only the keys that begin so.")
@click.option("--leased", is_flag=True, help="Also leased keys; they become permanent.")
@click.option("--delete", is_flag=True, help="Delete what only the target has.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
@click.option("--verify", is_flag=True, help="Compare both afterwards; exit code 1 if they differ.")
def copy_(
    context: Context,
    uris: tuple[str, ...],
    to: str | None,
    prefix: str,
    leased: bool,
    delete: bool,
    dry_run: bool,
    verify: bool,
) -> int:
    """Copy the entries of the store SOURCE to the store TARGET, both URIs.

    The source may be named by --uri, --uri-file or KVI_URI instead, the target by --to-uri-file or
    KVI_TO_URI: so that no list of processes shows their secrets.

    Only what differs is written, so that a copy that was broken off is begun again and finds what
    is there already. Keys that vanish with a lease are left out unless asked for. A store that
    changes meanwhile is copied as it was found, each key at its time. --namespace and --prefix
    count for both sides.
    """
    source, target = _both(context, uris, to)
    refuse_links(source, target)
    here = context.open(source)
    there = context.open(target, retry=PATIENT)
    if not dry_run:
        refuse_overlap(here, there, prefix)
    found = _Walk()

    def sent(number: int) -> None:
        found.written += number

    if delete and not here.count(prefix=prefix):
        raise Failed(
            f"{here.uri} has no such keys: --delete would delete all of the target's; "
            "if that is meant, use kvi del"
        )
    total = here.count(prefix=prefix) if sys.stderr.isatty() and not context.json else None
    batches = Batches(there, context.go_on, sent)
    try:
        with progress("comparing" if dry_run else "copying", total, context.json) as tell:
            for key, value in walk(here, there, prefix, leased, found, tell):
                if dry_run:
                    continue
                if value is not None:
                    batches.put(key, value)
                elif delete:
                    batches.delete(key)
            batches.flush()
    except KviError as error:
        error.message += f"; {found.written:,} entries are written: begin again, and they are found"
        raise
    except KeyboardInterrupt:
        click.echo(f"kvi: broken off; {found.written:,} entries are written: begin again", err=True)
        raise
    checked, differs = None, False
    if verify and not dry_run:
        checked = _Walk()
        with progress("verifying", total, context.json) as tell:
            for _ in walk(here, there, prefix, leased, checked, tell):
                pass
        differs = bool(checked.missing or checked.different or (delete and checked.extra))
    if context.json:
        counts = {name: count for name, count in asdict(found).items() if name != "examples"}
        verified = {} if checked is None else {"verified": not differs}
        say_json({**counts, "dry_run": dry_run, **verified})
    else:
        click.echo("\n".join(_summary(found, checked, differs, delete, dry_run)))
    return NOT_FOUND if differs else 0


def _both(context: Context, uris: tuple[str, ...], to: str | None) -> tuple[str, str]:
    """The source and the target; each is named once."""
    rest = list(uris)
    source, target = context.given_uri, None if to is None else uri_in(to)
    if source is None:
        source = rest.pop(0) if rest else os.environ.get("KVI_URI")
    if target is None:
        target = rest.pop(0) if rest else os.environ.get("KVI_TO_URI")
    if rest:
        raise click.UsageError("copy takes two stores: the source and the target.")
    if not source:
        raise click.UsageError("Name the source: as URI, by --uri-file or by KVI_URI.")
    if not target:
        raise click.UsageError("Name the target: as URI, by --to-uri-file or by KVI_TO_URI.")
    return source, target


def _summary(
    found: _Walk, checked: _Walk | None, differs: bool, delete: bool, dry_run: bool
) -> list[str]:
    """What a copy did, for people."""
    what, changes = "to write  " if dry_run else "written   ", found.missing + found.different
    lines = [
        f"read       {found.read:,}",
        f"{what} {changes:,} ({found.missing:,} missing, {found.different:,} different)",
        f"equal      {found.equal:,}",
    ]
    if found.extra:
        fate = ("to delete" if dry_run else "deleted") if delete else "--delete removes them"
        lines.append(f"extra      {found.extra:,} ({fate})")
    if found.left_out:
        lines.append(f"left out   {found.left_out:,} leased keys (--leased takes them)")
    if checked is not None:
        lines.append(f"verified   {'DIFFERENT' if differs else 'equal'}, {checked.equal:,} entries")
        lines += [f"           {example}" for example in checked.examples if differs]
    return lines
