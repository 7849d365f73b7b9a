"""`update edit`: change a value by a command, or in an editor."""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
import tempfile
from pathlib import Path

import click

import kvi
from kvi.cli.app import KEY, NOT_FOUND, Context, Ended, Failed, command
from kvi.cli.jobs import Job
from kvi.cli.output import line_of, say_json
from kvi.cli.running import WithCommand, exit_code, words_of

_MANY = 10  # runs of a command, after each of which it is told that it runs again


class _Refused(Exception):
    """The command failed, so nothing is to be written."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@command(
    "update",
    "kvi put hits 7\n"
    "kvi update hits -- awk '{ printf \"%d\", $1 + 1 }'\n"
    "kvi update app/config -- sed s/debug/info/",
    cls=WithCommand,
)
@click.argument("key", type=KEY)
def update_(context: Context, key: str) -> int:
    """Change the value of KEY by CMD, atomically: CMD reads the old one and writes the new one.

    The value is on the standard input of CMD, which is empty if KEY is not there, and what CMD
    prints is stored, exactly. If others change KEY meanwhile, CMD runs again. If CMD fails nothing
    is written, and the exit code is that of CMD.
    """
    words = words_of("update KEY")
    store = context.store()
    env = context.named() | {"KVI_KEY": key}
    runs = 0

    def change(old: bytes) -> bytes:
        nonlocal runs
        if runs and runs % _MANY == 0:
            click.echo(
                f"kvi: {key!r} was changed {runs:,} times while {words[0]!r} ran, which runs again",
                err=True,
            )
        runs += 1
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
            given.write(old)
            given.seek(0)
            with Job(words, env, stdin=given, stdout=printed) as job:
                code = exit_code(job.wait())
            if code:
                raise _Refused(code)
            _ensure_wanted(context, job)
            printed.seek(0)
            return printed.read()

    try:
        entry = store.update(key, change, default=b"")
    except _Refused as refused:
        return refused.code
    if context.json:
        assert entry is not None
        say_json({"key": key, "revision": entry.revision})
    return 0


@command(
    "edit",
    "kvi put app/rate 10\nEDITOR='sed -i.bak s/10/20/' kvi edit app/rate",
)
@click.argument("key", type=KEY)
def edit_(context: Context, key: str) -> int:
    """Change the value of KEY in an editor: $VISUAL, $EDITOR, or vi.

    What is saved is stored if nobody else has changed KEY meanwhile. Otherwise the difference is
    shown, the edited value stays in a file, and the exit code is 1. A lease stays that of the key.
    """
    store = context.store()
    store._scope.ensure_writable()  # before anybody edits in vain
    entry = store.get(key)
    old = b"" if entry is None else entry.value or b""
    folder = tempfile.mkdtemp(prefix="kvi-edit-")  # for nobody else, with what editors put beside
    path = Path(folder, "value")
    path.write_bytes(old)
    name = str(path)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    stored = False
    try:
        with Job(f"{editor} {shlex.quote(name)}", context.named() | {"KVI_KEY": key}) as job:
            code = exit_code(job.wait())
        if code:
            raise Failed(f"the editor {line_of(editor)!r} failed; nothing was written", code)
        _ensure_wanted(context, job)
        new = path.read_bytes()
        if new == old:
            click.echo("kvi: nothing was changed", err=True)
            if context.json:
                say_json({"key": key, "revision": None if entry is None else entry.revision})
            return 0
        lease = None if entry is None else entry.lease
        revision = store.cas(key, entry.revision if entry else 0, new, lease=lease)
        stored = revision is not None
        if not stored:
            _say_conflict(store.get(key), new)
            return NOT_FOUND
    finally:  # however it ended: what somebody has saved is not thrown away
        if stored or not path.exists() or path.read_bytes() == old:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            click.echo(f"kvi: the edited value is in {name}", err=True)
    if context.json:
        say_json({"key": key, "revision": revision})
    return 0


def _ensure_wanted(context: Context, job: Job) -> None:
    """Raise `Ended` if kvi was asked to end, also if what it ran has ended well."""
    context.go_on()
    if job.asked_to_end:
        raise Ended(job.asked_to_end[0])


def _say_conflict(entry: kvi.KeyValue | None, ours: bytes) -> None:
    there = b"" if entry is None else entry.value or b""
    gone = " (it was deleted)" if entry is None else ""
    click.echo(f"kvi: somebody else has changed the key meanwhile{gone}:", err=True)
    if there == ours:
        click.echo("kvi: both values are the same", err=True)
    for line in difflib.unified_diff(
        _lines(there), _lines(ours), "in the store", "edited", lineterm=""
    ):
        click.echo(line_of(line, "\t"), err=True)


def _lines(value: bytes) -> list[str]:
    """The lines of a value, so that unequal ones have unequal lines."""
    *lines, last = value.decode(errors="backslashreplace").split("\n")
    return [*lines, f"{last} (without a newline)"] if last else lines
