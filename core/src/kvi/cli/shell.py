"""`shell`: one command after another, on a store that stays open.

*At a prompt*, if standard input and output are a terminal: `prompt` has history and completion.
What fails says so and shows its exit code in the next prompt; Ctrl-C ends the command that runs, or
clears the line. After what was interrupted or failed in its store, the store is opened anew.

*From a script*, otherwise: the lines of standard input, until one fails. They are the script's
alone: a command that reads standard input is refused, and what it runs reads nothing.

A line is split into words as a shell does, with quotes and comments; it has no variables and no
pipes. What the options of the shell say, the options of a line may say otherwise.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import click

import kvi
from kvi.cli.app import (
    ENDING,
    NOT_FOUND,
    USAGE,
    Context,
    Ended,
    Failed,
    Kept,
    app,
    command,
    perform,
    summaries,
    told,
)
from kvi.cli.output import line_of
from kvi.cli.txn import SPACES, scan
from kvi.text import prefix_end

_PATIENCE = 0.5  # seconds of a call for completion: who types does not wait for a store
_SHOWN = 50  # keys and levels that are offered
_PAGE = 100  # keys that are read at once to find them
_QUOTES = ("'", '"')
_LEAVE = {"exit": "Leave.", "quit": "Leave."}
_HELP = {"help": "Show what a command does."}


@command(
    "shell",
    "kvi shell   # until exit, or Ctrl-D\n"
    "printf 'put greeting hello\\nrange greet\\n' | kvi shell\n"
    "echo 'get greeting' | kvi --read-only shell",
)
def shell_(context: Context) -> int:
    """Run one command after another, each written without `kvi`, on a store that stays open.

    On a terminal there is a prompt, with history and with completion of commands, options and keys
    by Tab; it needs the extra kvi[shell]. A line that begins with a space is not saved. Ctrl-C ends
    the command that runs; exit or Ctrl-D leaves.

    Otherwise the lines of standard input are run until one fails, and the exit code is that line's.
    """
    if context.kept is not None:
        raise click.UsageError("This is kvi shell already.")
    if context.given_uri:
        os.environ["KVI_URI"] = context.given_uri  # a line may name another one
    kept = Kept()
    base = replace(context, uri=None, uri_from_file=None, opened=[], kept=kept)
    try:
        with handled(base.end, (*ENDING, signal.SIGINT)):
            if sys.stdin.isatty() and sys.stdout.isatty():
                return _at_prompt(base)
            return _script(base)
    finally:
        kept.close()


class _Left(Exception):
    """A line asks to leave, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


# -- lines -----------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A command, and the number of the line that it begins with."""

    number: int
    words: list[str]


def commands(lines: Iterable[str]) -> Iterator[Line]:
    """The commands of these lines; a word in quotes may go on in the next line.

    Raises `InvalidArgument` for quotes without an end.
    """
    begun: list[str] = []
    first, left = 0, ""  # what is left open: a quote, or a backslash at the end of a line
    for number, line in enumerate(lines, 1):
        first = first or number
        begun.append(line)
        if left in _QUOTES and left not in line and line[-1:] != "\\":  # it goes on as it was
            begun.append("\n")
            continue
        text, left = scan("".join(begun))
        if left:
            begun = [text, "\n"] if left in _QUOTES else [text[:-1]]
            continue
        words = shlex.split(text)
        if words and words[0] == "kvi":
            del words[0]
        if words:
            yield Line(first, words)
        begun, first = [], 0
    if left:
        what = "No closing quotation" if left in _QUOTES else "No escaped character"
        raise kvi.InvalidArgument(f"line {first}: {what}")


def is_open(text: str) -> bool:
    """Whether the last word of it goes on in the next line."""
    return bool(scan(text)[1])


def _run(base: Context, words: list[str]) -> int:
    """Run one command; its exit code. Raises `_Left`, and `Ended` for what asks all to end."""
    if words[0] in _LEAVE:
        raise _Left(_exit_code(words[1:]))
    if words[0] in _HELP:
        words = [*words[1:], "--help"]
    line = replace(base, opened=[])
    try:
        with handled(line.end, (*ENDING, signal.SIGINT)):
            code = perform(words, line)
    except KeyboardInterrupt:  # it came beside what the command did
        code = 128 + signal.SIGINT
    if line.ended_by is not None and line.ended_by in ENDING:
        raise Ended(line.ended_by)
    if code not in (0, USAGE, NOT_FOUND) and base.kept is not None:
        base.kept.close()
    return code


def _exit_code(words: list[str]) -> int:
    if not words:
        return 0
    if len(words) > 1 or not words[0].isdecimal() or int(words[0]) > 255:
        raise kvi.InvalidArgument("exit takes one exit code, from 0 to 255")
    return int(words[0])


@contextmanager
def handled(handler: Callable[..., object], numbers: Iterable[int]) -> Iterator[None]:
    """These signals go to this handler; what is ignored stays so."""
    before = {}
    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


# -- a script --------------------------------------------------------------------------------------


def _script(base: Context) -> int:
    with _own_input() as lines:
        for number, words in commands(lines):
            base.go_on()
            try:
                code = _run(base, words)
            except _Left as left:
                return left.code
            if code:
                if code < 128:  # else whoever ended it knows
                    stopped = f"line {number} ended with {code}; the rest was not run"
                    click.echo(f"kvi: {stopped}", err=True)
                return code
    return 0


class _Nothing(io.RawIOBase):
    """Standard input of a command, while it holds the script."""

    def readable(self) -> bool:
        """It is, so that who reads it is told."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Say where to read from instead."""
        raise Failed("standard input holds the commands: name a file in place of -")


@contextmanager
def _own_input() -> Iterator[Iterator[str]]:
    """The lines of standard input, which nobody else can read meanwhile."""
    stdin, fd = sys.stdin, sys.stdin.fileno()
    with os.fdopen(os.dup(fd), "rb") as script, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), fd)
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Nothing()), "utf-8")
        try:
            # As the words of a command line are decoded, so that any bytes come through.
            yield (line.decode(errors="surrogateescape").removesuffix("\n") for line in script)
        finally:
            sys.stdin = stdin
            os.dup2(script.fileno(), fd)


# -- a prompt --------------------------------------------------------------------------------------


def _at_prompt(base: Context) -> int:
    try:
        from kvi.cli.prompt import Prompt
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "prompt_toolkit":
            raise
        raise kvi.NotSupported(
            "a prompt needs the library prompt_toolkit: pip install 'kvi[shell]'; "
            "without it, lines come from a pipe or a file"
        ) from error
    name = line_of(base.store().uri)
    completer = Completer(base)
    prompt, code = Prompt(completer.found), 0
    try:
        # Between two commands Ctrl-C is no end of the shell.
        with handled(signal.default_int_handler, [signal.SIGINT]):
            while True:
                try:
                    base.go_on()
                    text = prompt.ask(f"[{code}] {name}> " if code else f"{name}> ")
                    if text is None:
                        return 0
                    code = _run_all(base, text)
                except _Left as left:
                    return left.code
                except KeyboardInterrupt as error:
                    if isinstance(error, Ended) and error.number in ENDING:
                        raise
                    code = 128 + signal.SIGINT
    finally:
        completer.close()


def _run_all(base: Context, text: str) -> int:
    """Run what was typed, or pasted: the exit code of the last command, or of the first to fail."""
    try:
        for _, words in commands(text.split("\n")):
            if code := _run(base, words):
                return code
    except kvi.InvalidArgument as error:
        return told(error)
    return 0


# -- completion ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What the last characters of a line may become."""

    size: int
    text: str
    shown: str
    told: str


class Completer:
    """Completes commands, options and keys.

    Keys come from a store of its own, that can only read and does not wait for long. Whatever goes
    wrong, there is nothing to complete.
    """

    def __init__(self, base: Context) -> None:
        self._kept = Kept()
        self._turn = threading.Lock()  # who presses Tab twice has two threads
        self._base = replace(
            base, kept=self._kept, keys=_keys, timeout=_PATIENCE, read_only=True, opened=[]
        )

    def close(self) -> None:
        """Close its store."""
        self._kept.close()

    def found(self, text: str) -> list[Found]:
        """What the line may go on with, of which this is the beginning."""
        try:
            with self._turn:
                return list(self._found(text))
        except Exception:  # noqa: BLE001  (somebody types: no error may get in between)
            return []

    def _found(self, text: str) -> Iterator[Found]:
        at = last_word(text)
        words, beginning = shlex.split(text[:at]), unfinished(text[at:])
        if words[:1] == ["kvi"]:
            del words[0]
        if not words or words == ["help"]:
            offered = summaries()
            if not words:
                offered |= _LEAVE | _HELP
            for name, short in offered.items():
                if name.startswith(beginning):
                    yield Found(len(text) - at, name, name, short)
            if not beginning.startswith("-"):
                return
        from click.shell_completion import ShellComplete

        if beginning.startswith("-") and "=" in beginning:
            at += text[at:].index("=") + 1
        complete = ShellComplete(app, {"obj": replace(self._base)}, "kvi", "")
        for item in complete.get_completions(words, beginning):
            if item.type == "plain" and str(item.value).isprintable():
                value = str(item.value)
                yield Found(len(text) - at, shlex.quote(value), value, line_of(item.help or ""))


def last_word(text: str) -> int:
    """Where the last word of a line begins; at its end if a new one would begin there."""
    quote, begin, escaped = "", None, False
    for at, char in enumerate(text):
        if begin is None and char not in SPACES:
            begin = at
        if escaped:
            escaped = False
        elif quote:
            escaped = char == "\\" and quote == '"'
            quote = "" if char == quote else quote
        elif char == "\\":
            escaped = True
        elif char in "'\"":
            quote = char
        elif char in SPACES:
            begin = None
    return len(text) if begin is None else begin


def unfinished(word: str) -> str:
    """A word without its quotes, of which the last may not be closed yet."""
    for closing in ("", "'", '"'):
        try:
            return "".join(shlex.split(word + closing))
        except ValueError as error:
            if "escaped" in str(error):  # a backslash, behind which nothing stands yet
                return unfinished(word[:-1])
    return word


def _keys(context: Context, beginning: str) -> list[str]:
    """Keys that begin so, in order; of those in a deeper level, the level."""
    store, until = context.store(), time.monotonic() + 2 * _PATIENCE
    found: list[str] = []
    start: str | None = beginning
    while start is not None and len(found) < _SHOWN and time.monotonic() < until:
        page = list(store.range(start or None, prefix_end(beginning), limit=_PAGE, keys_only=True))
        for entry in page:
            level = entry.key.find("/", len(beginning)) + 1
            name = entry.key[:level] if level else entry.key
            if name not in found[-1:]:
                found.append(name)
        if len(page) < _PAGE:
            break
        start = prefix_end(found[-1]) if found[-1].endswith("/") else found[-1] + "\0"
    return found[:_SHOWN]
