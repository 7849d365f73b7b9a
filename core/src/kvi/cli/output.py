"""Entries as text and as JSON, values in the encoding asked for, tables on a terminal.

On a terminal, tables; in a pipe, lines whose fields are separated by tabs, with control characters
and what is not UTF-8 written as backslash escapes, so that a line is always a line. JSON says
everything exactly: a value that is not UTF-8 is ``value_base64`` instead of ``value``, and what is
not printable stands as an escape of JSON, in a file too.

*Terminals.* Whatever a store, a server or a file says may hold sequences that steer a terminal. So
a standard stream that is a terminal is wrapped in `Terminal`, and all text passes through it:
output, errors, tracebacks, the words of libraries. Only `bare` goes past it, for what kvi itself
has styled.

*Standard error* may be a full disk, a pipe without a reader or a terminal that was hung up. What is
said there then is lost, and nothing else: the exit code stays, and a command that is to be ended
is ended.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any, TextIO

import click

import kvi
from kvi.errors import InvalidArgument

_ROWS = 500  # of a table: it is kept in memory until its last row is known

ENCODINGS = ("text", "hex", "base64")

encoding_option = click.option(
    "--as",
    "encoding",
    type=click.Choice(ENCODINGS),
    default="text",
    show_default=True,
    help="How values are written.",
)


def given(text: str, encoding: str) -> bytes:
    """A value that was given on the command line, as bytes."""
    try:
        if encoding == "hex":
            return bytes.fromhex(text)
        if encoding == "base64":
            return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidArgument(f"this value is not {encoding}: {error}") from None
    return text.encode(errors="surrogateescape")


def written(value: bytes, encoding: str) -> str:
    """A value as text that can be read back with the same encoding, if it is UTF-8 or encoded."""
    if encoding == "hex":
        return value.hex()
    if encoding == "base64":
        return base64.b64encode(value).decode()
    return value.decode(errors="backslashreplace")


def line_of(text: str, kept: str = "") -> str:
    """The text on one line, without control characters other than those in ``kept``."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )


class Terminal:
    """A terminal's stream that no text can steer: control characters are written as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write it in lines and tabs; everything else that is not printable as an escape."""
        self.stream.write(line_of(text, "\n\t"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of them so."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # its bytes would come through as they are
            raise AttributeError(name)
        return getattr(self.stream, name)


class Notes:
    """Standard error: what cannot be written there is lost, and changes nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write it, if that can be."""
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass it on, if that can be."""
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def bare(stream: TextIO) -> TextIO:
    """The stream for what kvi itself has styled, and escaped before."""
    return stream.stream if isinstance(stream, Terminal) else stream


def say_styled(text: str, **style: Any) -> None:
    """Text in a style where there is a terminal, without an end of line."""
    shown = line_of(text)
    if not in_colour():
        style.pop("fg", None)
    bare(sys.stdout).write(click.style(shown, **style) if on_terminal() else shown)


def value_members(value: bytes) -> dict[str, str]:
    """A value as members of a JSON object, exactly."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


def members(entry: kvi.KeyValue) -> dict[str, Any]:
    """An entry as members of a JSON object."""
    made: dict[str, Any] = {"key": entry.key}
    if entry.value is not None:
        made |= value_members(entry.value)
    made["revision"] = entry.revision
    made["create_revision"] = entry.create_revision
    if entry.version is not None:
        made["version"] = entry.version
    if entry.lease is not None:
        made["lease"] = entry.lease
    return made


def json_line(found: object) -> str:
    """JSON on one line; what is not printable stands as an escape, which says the same."""
    text = json.dumps(found, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def say_json(found: object) -> None:
    """One line of JSON."""
    click.echo(json_line(found))


def say_fields(*fields: str) -> None:
    """One line, its fields separated by tabs."""
    click.echo("\t".join(map(line_of, fields)))


def say_value(value: bytes, encoding: str, end: bytes = b"") -> None:
    """A value alone: exactly it, or its encoding; on a terminal what it can show, and a newline.

    Where there is no terminal, ``end`` follows.
    """
    if on_terminal():
        click.echo(written(value, encoding))
    else:
        data = value if encoding == "text" else written(value, encoding).encode()
        sys.stdout.buffer.write(data + end)
        sys.stdout.buffer.flush()


def on_terminal() -> bool:
    """Whether somebody looks: tables and colour are for them."""
    return sys.stdout.isatty()


def in_colour() -> bool:
    """Whether somebody looks who has not said no to colours, by the variable NO_COLOR."""
    return on_terminal() and not os.environ.get("NO_COLOR")


def say_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()
) -> None:
    """A table on a terminal, else lines; also where there are more rows than one looks at."""
    rest = iter(rows)
    shown = list(islice(rest, _ROWS + 1)) if on_terminal() else []
    if not shown or len(shown) > _ROWS:
        for row in chain(shown, rest):
            say_fields(*row)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in shown:
        table.add_row(*(Text(line_of(cell)) for cell in row))
    Console(file=bare(sys.stdout), highlight=False).print(table)


@contextmanager
def progress(what: str, total: int | None, as_json: bool) -> Iterator[Callable[[int], object]]:
    """A bar on the terminal, if there is one; yields what to call with the number now done."""
    if as_json or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns,
        console=Console(file=bare(sys.stderr)),
        transient=True,
        redirect_stdout=False,  # what is said meanwhile must not get past the escapes
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, completed=count)
