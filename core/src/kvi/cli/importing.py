"""`import`: the entries of an export, of kvi or of another tool, are checked and stored.

An input of any of the three formats is read as `records`, each with its place: the number of a
line, or of an entry where the lines are not kvi's. A file is read twice, first to its end to check
it; a pipe cannot be, so what is wrong with it is told with how far it came.
"""

from __future__ import annotations

import io
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import click

from kvi.cli import records
from kvi.cli.app import Context, Failed, command
from kvi.cli.foreign import Entries, Format, NoValues, recognised
from kvi.cli.moving import PATIENT, Batches, parsed
from kvi.cli.output import progress, say_json
from kvi.errors import InvalidArgument, KviError

_CHUNK = 64 * 1024
_BEGINNING = 2**20  # bytes after which what is not recognised is taken for lines


class _Found(NamedTuple):
    """A part of an input, its place, and how many bytes were read up to it."""

    place: int
    done: int
    record: records.Header | records.Entry | records.End | None  # None: it was left out


class _Input(NamedTuple):
    """An input whose format is known."""

    kind: Format
    found: Iterator[_Found]


def _unit(kind: Format) -> str:
    """What the places of such an input count."""
    return "line" if kind is Format.LINES else "entry"


@dataclass(slots=True)
class _Import:
    """How far an import is."""

    kind: Format = Format.LINES
    place: int = 0
    sent: int = 0
    left_out: int = 0
    places: list[int] = field(default_factory=list)
    """The place of each entry that was not yet sent, in order."""

    @property
    def next_place(self) -> int:
        """The first place that is not stored yet."""
        return self.places[0] if self.places else self.place + 1


@command(
    "import",
    "kvi import backup.jsonl\n"
    "gunzip -c app.jsonl.gz | kvi import -\n"
    "kvi import backup.jsonl --dry-run\n"
    "consul kv export app/ | kvi import -\n"
    "etcdctl get --prefix -w json app/ | kvi import -",
)
@click.argument("file", type=click.Path(allow_dash=True, dir_okay=False, exists=True))
@click.option("--leased", is_flag=True, help="Also keys that were leased; they become permanent.")
@click.option(
    "--from-line",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Leave out what stands before, of a kvi export.",
)
@click.option(
    "--empty-values",
    is_flag=True,
    help="Also a list of etcdctl in which no key has a value, as with --keys-only.",
)
@click.option("--dry-run", is_flag=True, help="Check the file, and store nothing.")
def import_(
    context: Context, file: str, leased: bool, from_line: int, empty_values: bool, dry_run: bool
) -> int:
    """Store the entries of FILE, an export; - is standard input.

    FILE is what `kvi export`, `consul kv export` or `etcdctl get --prefix -w json` wrote, as it is;
    which of them shows in its first characters.

    A file is checked to its end before anything is stored. What is under the keys is replaced;
    other keys stay. If it is broken off, it says how far it came; beginning anew does no harm.
    """
    twice = file != "-" and Path(file).is_file()  # and no pipe that has a name
    unit = ""
    if twice or dry_run:
        with _opened(file) as stream:
            whole = _input(file, stream, 1, empty_values)
            _check(file, whole)
            unit = _unit(whole.kind)
    if dry_run:
        if context.json:
            say_json({"imported": 0, "dry_run": True})
        else:
            click.echo(f"every {unit} is right; nothing was stored", err=True)
        return 0
    store = context.store(retry=PATIENT)
    state = _Import()

    def sent(number: int) -> None:
        state.sent += number
        del state.places[:number]

    batches = Batches(store, context.go_on, sent)
    size = Path(file).stat().st_size if twice else None
    try:
        with _opened(file) as stream, progress("importing", size, context.json) as tell:
            given = _input(file, stream, from_line, empty_values)
            state.kind = given.kind
            _store(file, given, state, batches, leased, from_line, tell)
    except (KviError, Failed) as error:
        raise _broken_off(error, state) from error
    except (Exception, KeyboardInterrupt):
        click.echo(f"kvi: broken off{_so_far(state)}", err=True)
        raise
    if context.json:
        say_json({"imported": state.sent, "left_out": state.left_out})
    else:
        left = f", {state.left_out:,} leased ones left out (--leased takes them)"
        click.echo(f"imported {state.sent:,} entries{left if state.left_out else ''}", err=True)
    return 0


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as stream:
        yield stream


# -- reading ---------------------------------------------------------------------------------------


def _input(file: str, stream: BinaryIO, from_line: int, empty_values: bool) -> _Input:
    """The input, in the format that its beginning shows; without lines before ``from_line``."""
    beginning, kind = b"", None
    while kind is None:
        piece = stream.readline(_CHUNK)
        beginning = (beginning + piece).removeprefix(BOM_UTF8)  # as shells of Windows write it
        kind = recognised(beginning)
        if not piece or len(beginning) > _BEGINNING:
            kind = kind or Format.LINES
    if kind is Format.LINES:
        if not beginning.endswith(b"\n"):
            beginning += stream.readline()
        return _Input(kind, _lines(file, chain(io.BytesIO(beginning), stream), from_line))
    if from_line > 1:
        raise Failed(f"--from-line is for what `{Format.LINES.value}` wrote, and {file} is not")
    return _Input(kind, _entries(file, kind, beginning, stream, empty_values))


def _lines(file: str, lines: Iterator[bytes], from_line: int) -> Iterator[_Found]:
    done, record = 0, None
    for number, text in enumerate(lines, 1):
        done += len(text)
        if isinstance(record, records.End):
            raise Failed(f"{file}, line {number:,}: this stands behind the export's end")
        if number < from_line:
            yield _Found(number, done, None)
            continue
        try:
            record = parsed(file, number, text)
        except Failed as error:
            if number > 1:
                raise
            raise Failed(
                f"{error.message}; what is imported is the output of "
                + ", or of ".join(f"`{one.value}`" for one in Format)
            ) from None
        yield _Found(number, done, record)


def _entries(
    file: str, kind: Format, beginning: bytes, stream: BinaryIO, empty_values: bool
) -> Iterator[_Found]:
    """The entries of another tool's output, and an end as `records` has one."""
    done, rest = 0, beginning

    def read() -> bytes:
        nonlocal done, rest
        data, rest = rest or stream.read(_CHUNK), b""
        done += len(data)
        return data

    entries = Entries(kind, read, empty_values=empty_values)
    try:
        for entry in entries:
            yield _Found(entries.number, done, entry)
    except NoValues as error:
        raise Failed(f"{file}: {error.message}; --empty-values stores them all the same") from None
    except InvalidArgument as error:
        raise Failed(f"{file}, read as `{kind.value}`: {error.message}") from None
    yield _Found(entries.number + 1, done, records.End(entries.number))


def _check(file: str, given: _Input) -> None:
    """Raise what is wrong with an input before anything of it is stored."""
    entries, end, last = 0, None, 0
    for number, _, record in given.found:
        if isinstance(record, records.Entry):
            entries += 1
        elif isinstance(record, records.End):
            end = record.entries
        last = number
    if end is None:
        raise Failed(
            f"{file} ends with line {last:,}, without the line that says that it is whole; "
            "export it anew, or go on with export --resume"
        )
    if end != entries:
        raise Failed(f"{file} has {entries:,} entries, and its last line says {end:,}")


# -- storing ---------------------------------------------------------------------------------------


def _store(
    file: str,
    given: _Input,
    state: _Import,
    batches: Batches,
    leased: bool,
    from_line: int,
    tell: Callable[[int], object],
) -> None:
    entries, end = 0, None
    for place, done, record in _flushed(given.found, batches):
        state.place = place
        if isinstance(record, records.End):
            end = record.entries
        elif isinstance(record, records.Entry):
            entries += 1
            if record.leased and not leased:
                state.left_out += 1
            else:
                state.places.append(place)
                batches.put(record.key, record.value)
        tell(done)
    batches.flush()
    if state.place < from_line and from_line > 1:
        raise Failed(f"{file} has {state.place:,} lines: there is no line {from_line:,}")
    if end is None or (from_line == 1 and end != entries):
        raise Failed(f"{file} was cut short: {'no' if end is None else 'another'} count at its end")


def _flushed(found: Iterator[_Found], batches: Batches) -> Iterator[_Found]:
    """The same; before what is wrong is raised, all that is right is stored."""
    try:
        yield from found
    except Failed:
        batches.flush()
        raise


def _so_far(state: _Import) -> str:
    how = f"go on with --from-line {state.next_place}"
    if state.kind is not Format.LINES:
        how = "begin anew, which does no harm"
    unit = _unit(state.kind)
    return f"; {state.sent:,} entries are stored, those before {unit} {state.next_place:,}: {how}"


def _broken_off(error: Exception, state: _Import) -> Exception:
    """The same error, with how far it came."""
    told = _so_far(state)
    if isinstance(error, Failed):
        return Failed(error.message + told, error.exit_code)
    assert isinstance(error, KviError)
    error.message += told
    return error
