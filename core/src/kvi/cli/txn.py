"""`txn`: transactions in a form that people can read and write.

One part a line; blank lines and what follows a ``#`` do not count; words are quoted as in a shell::

    if   value limits/rate = 100        # value, revision, create_revision, version, lease
    if   absent limits/burst            # or exists
    then put limits/burst 200
    then get limits/rate
    else get limits/burst

All ``if`` lines must hold for the ``then`` lines to run, otherwise the ``else`` lines do.
"""

from __future__ import annotations

import shlex
from typing import Any, TextIO

import click

import kvi
from kvi.cli.app import NOT_FOUND, Context, command
from kvi.cli.output import encoding_option, given, members, say_fields, say_json, written
from kvi.model import Compare, Operation, Target

_FORMS = (
    "if value KEY = VALUE (or != < >), if revision KEY = NUMBER, if exists KEY, if absent KEY, "
    "then put KEY VALUE, then get KEY, then delete KEY, else …"
)

SPACES = " \t\r\n"
"""What parts words, for `shlex`; other spaces are characters as any."""


def parse(
    text: str, encoding: str = "text"
) -> tuple[list[Compare], list[Operation], list[Operation]]:
    """The parts of a transaction; raises `InvalidArgument` with the number of the line."""
    when: list[Compare] = []
    branches: dict[str, list[Operation]] = {"then": [], "else": []}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = shlex.split(without_comment(line))
            if not words:
                continue
            if words[0] == "if":
                when.append(_compare(words[1:], encoding))
            elif words[0] in branches:
                branches[words[0]].append(_operation(words[1:], encoding))
            else:
                raise ValueError(f"a line begins with if, then or else, not {words[0]!r}")
        except kvi.KviError as error:
            raise kvi.InvalidArgument(f"line {number}: {error.message}") from None
        except ValueError as error:
            raise kvi.InvalidArgument(f"line {number}: {error}; the forms are: {_FORMS}") from None
    return when, branches["then"], branches["else"]


def without_comment(line: str) -> str:
    """The line up to a ``#`` that begins a word, as a shell reads it."""
    return scan(line)[0]


def scan(line: str) -> tuple[str, str]:
    """The same, and what it leaves open: a quote, a backslash at its end, or nothing."""
    quote, before = "", " "
    for index, char in enumerate(line):
        if before == "\\" and quote != "'":
            before = "x"  # whatever it is, it is part of a word
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and before in SPACES:
            return line[:index], ""
        before = char
    return line, "\\" if before == "\\" and quote != "'" else quote


def _compare(words: list[str], encoding: str) -> Compare:
    match words:
        case ["exists", key]:
            return kvi.Key(key).exists
        case ["absent", key]:
            return kvi.Key(key).absent
        case [target, key, operator, operand]:
            try:
                kind = Target(target)
            except ValueError:
                raise ValueError(f"unknown property {target!r}") from None
            found: Any = getattr(kvi.Key(key), kind.value)
            if kind is Target.VALUE:
                by_value: Compare = found.compare(operator, given(operand, encoding))
                return by_value
            if not operand.isdecimal():
                raise ValueError(f"{target} compares with a whole number, not {operand!r}")
            by_number: Compare = found.compare(operator, int(operand))
            return by_number
    raise ValueError("this is no condition")


def _operation(words: list[str], encoding: str) -> Operation:
    match words:
        case ["put", key, value]:
            return kvi.Put(key, given(value, encoding))
        case ["get", key]:
            return kvi.Get(key)
        case ["delete", key]:
            return kvi.Delete(key)
    raise ValueError("this is no operation")


@command(
    "txn",
    "kvi del --prefix limits/ || true\n"
    "printf 'if absent limits/rate\\nthen put limits/rate 100\\n' | kvi txn -\n"
    "printf 'then get limits/rate\\nthen delete limits/rate' | kvi txn - --json",
)
@click.argument("file", type=click.File(encoding="utf-8"), default="-")
@encoding_option
def txn_(context: Context, file: TextIO, encoding: str) -> int:
    r"""Run the transaction that FILE describes, a line a part; - is standard input.

    \b
    if   value limits/rate = 100      also revision, create_revision, version, lease; != < >
    if   absent limits/burst          or exists
    then put limits/burst 200
    then get limits/rate              or delete
    else get limits/burst

    All conditions must hold for the then lines to run, else the else lines do; exit code 1 then.
    """
    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise kvi.InvalidArgument(f"{file.name} is not UTF-8: {error}") from None
    when, then, otherwise = parse(text, encoding)
    if not (when or then or otherwise):
        raise kvi.InvalidArgument(f"the transaction is empty; the forms are: {_FORMS}")
    done = context.store().txn(when, then, otherwise)
    if context.json:
        results: list[object] = [
            members(one) if isinstance(one, kvi.KeyValue) else one for one in done.results
        ]
        say_json({"succeeded": done.succeeded, "revision": done.revision, "results": results})
    else:
        say_fields("then" if done else "else")
        for operation, one in zip(then if done else otherwise, done.results, strict=True):
            match operation:
                case kvi.Put(key):
                    say_fields("put", key)
                case kvi.Delete(key):
                    say_fields("deleted" if one else "not there", key)
                case kvi.Get(key) if isinstance(one, kvi.KeyValue):
                    say_fields("got", key, written(one.value or b"", encoding))
                case kvi.Get(key):
                    say_fields("not there", key)
    return 0 if done else NOT_FOUND
