"""The command and what its subcommands share: the store, the options, errors and exit codes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from math import isnan
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

import kvi
from kvi import registry
from kvi.cli.output import Notes, Terminal
from kvi.errors import KviError, OutcomeUnknown
from kvi.uri import hidden

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

NOT_FOUND, USAGE, UNAVAILABLE, UNKNOWN, CONFLICT, NO_READER = 1, 2, 3, 4, 75, 141

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask the command to end; it lets go of what it holds before."""

_USAGE_ERRORS = (
    kvi.InvalidArgument,
    kvi.UnknownBackend,
    kvi.AmbiguousBackend,
    kvi.BackendLoadError,
    kvi.NotSupported,
    kvi.Compacted,
    kvi.BadRecord,
)

_COMMANDS = {  # each with its module, and what the help says of it
    "get": ("entries", "Print the value of a key."),
    "put": ("entries", "Create or replace a key."),
    "del": ("entries", "Delete keys."),
    "ls": ("entries", "List the keys of a prefix, one level at a time."),
    "range": ("entries", "Print the entries of a prefix or a range, in key order."),
    "count": ("entries", "Count the keys of a prefix or a range."),
    "tas": ("entries", "Test and set: change a value only if it is as expected."),
    "cas": ("entries", "Compare and set: store only if the revision is as expected."),
    "update": ("changing", "Change a value by a command, atomically."),
    "edit": ("changing", "Change a value in an editor."),
    "mv": ("renaming", "Rename a key, or all keys of a prefix."),
    "cp": ("renaming", "Copy a key, or all keys of a prefix, within the store."),
    "txn": ("txn", "Run a transaction, written in a file or on standard input."),
    "watch": ("watching", "Print changes as they happen."),
    "history": ("watching", "Print the changes of a key, newest first."),
    "lock": ("running", "Run a command while holding a lock."),
    "lease": ("running", "Run a command while a lease is kept alive, or end a lease."),
    "leases": ("leasing", "Show the leases of the store, and their keys."),
    "temp": ("running", "Keep a key alive while a command runs."),
    "elect": ("sharing", "Run a command while leading an election."),
    "semaphore": ("sharing", "Run a command while holding one of so many permits."),
    "once": ("sharing", "Run a command unless it has succeeded before, anywhere."),
    "every": ("sharing", "Run a command at its times, each time once among all."),
    "queue": ("sharing", "Put jobs into a queue, or do them."),
    "locks": ("sharing", "Show what is held, and who waits."),
    "export": ("moving", "Write entries to a file, as JSON Lines."),
    "import": ("importing", "Store the entries of an export, also of other tools."),
    "copy": ("moving", "Copy entries from one store to another."),
    "backup": ("backup", "Copy a SQLite store to a file, while it is in use."),
    "shell": ("shell", "Run one command after another, at a prompt or from a script."),
    "backends": ("looking", "Show the installed plugins and what their stores can do."),
    "doctor": ("looking", "Check whether the store can be used, step by step."),
    "explain": ("looking", "Tell what an error means, and what to do."),
    "ping": ("looking", "Ask whether the store answers."),
    "conformance": ("looking", "Check the store against the contract; deletes all in it."),
    "bench": ("looking", "Measure the store's usual operations."),
}

F = TypeVar("F", bound=Callable[..., Any])


class Ended(KeyboardInterrupt):
    """A signal asks the command to end: Ctrl-C, or one of `ENDING`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Failed(click.ClickException):
    """A refusal of the command itself, with an exit code of its own."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # it is there to be changed


class Kept:
    """A store that stays open from one command to the next, while they name the same."""

    def __init__(self) -> None:
        self._store: kvi.Kvi | None = None
        self._named: tuple[str, dict[str, Any]] | None = None

    def open(self, uri: str, options: dict[str, Any]) -> kvi.Kvi:
        """The store, opened anew if it was closed, or is another one."""
        if self._store is None or self._store.closed or self._named != (uri, options):
            self.close()
            self._store, self._named = kvi.open(uri, **options), (uri, options)
        return self._store

    def close(self) -> None:
        """Close it."""
        store, self._store = self._store, None
        if store is not None:
            with suppress(KviError):
                store.close()


@dataclass(slots=True)
class Context:
    """What the options before and after the subcommand say.

    Attributes:
        opened: what is closed when the command ends.
        kept: where the store comes from, if it is to stay open; of `kvi shell`.
        keys: gives the keys that begin so, for completion; of `kvi shell`.
        ended_by: the signal that asks the command to end.

    """

    uri: str | None = None
    uri_from_file: str | None = None
    namespace: str | None = None
    timeout: float | None = None
    read_only: bool = False
    json: bool = False
    debug: bool = False
    opened: list[kvi.Kvi] = field(default_factory=list)
    kept: Kept | None = None
    keys: Callable[[Context, str], list[str]] | None = None
    ended_by: int | None = None

    @property
    def given_uri(self) -> str | None:
        """The store that an option names."""
        if self.uri and self.uri_from_file:
            raise click.UsageError("--uri and --uri-file both name the store: keep one.")
        return self.uri or self.uri_from_file

    @property
    def named_uri(self) -> str | None:
        """The store that somebody named: by an option, or by the variable, if it is not empty."""
        return self.given_uri or os.environ.get("KVI_URI") or None

    @property
    def store_uri(self) -> str:
        """The store to use: the one that is named, or the user's own file."""
        return self.named_uri or default_uri(make=not self.read_only)

    def named(self) -> dict[str, str]:
        """The environment that lets a command use the same store, wherever it works.

        Raises what opening the store does.
        """
        uri = self.named_uri
        if self.namespace is not None:
            uri = registry.within(self.store_uri, self.namespace)
        limits = {"KVI_READ_ONLY": "yes"} if self.read_only else {}
        return limits if uri is None else {**limits, "KVI_URI": registry.anchored(uri)}

    def end(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal that asks the command to end."""
        self.ended_by = number
        raise Ended(number)

    def go_on(self) -> None:
        """Raise `Ended` once more, before something is done that should not be done after it.

        What a signal handler raises is lost where Python cannot pass it on, as in a destructor.
        """
        if self.ended_by is not None:
            raise Ended(self.ended_by)

    def store(self, **options: Any) -> kvi.Kvi:
        """Open the store; it is closed when the command ends, unless it is kept for others."""
        if self.kept is None or options:
            return self.open(self.store_uri, **options)
        return self._part(self.kept.open(*self._wanted(self.store_uri, options)))

    def open(self, uri: str, **options: Any) -> kvi.Kvi:
        """Open a store by its URI, with the time-out and namespace asked for."""
        uri, options = self._wanted(uri, options)
        store = kvi.open(uri, **options)
        self.opened.append(store)
        return self._part(store)

    def _wanted(self, uri: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """What to open, after what was asked for."""
        if self.timeout is not None:
            options.setdefault("timeout", self.timeout)
            uri = without(uri, "timeout")  # what is typed counts
        if self.read_only:
            options["read_only"] = True
            uri = without(uri, "read_only")
        if "retry" in options and uri != without(uri, "retry"):
            del options["retry"]
        return uri, options

    def _part(self, store: kvi.Kvi) -> kvi.Kvi:
        return store if self.namespace is None else store.namespace(self.namespace)

    def close(self) -> None:
        """Close what was opened, the last first."""
        while self.opened:
            with suppress(KviError):
                self.opened.pop().close()


def summaries() -> dict[str, str]:
    """What the help says of each subcommand; none is imported."""
    return {name: short for name, (_, short) in _COMMANDS.items()}


def without(uri: str, option: str) -> str:
    """The URI without an option of its query."""
    before, mark, query = uri.partition("?")
    kept = [part for part in query.split("&") if part.partition("=")[0] != option]
    return before + mark * bool(kept) + "&".join(kept)


def default_uri(*, make: bool = True) -> str:
    """The SQLite file in the user's data directory; ``make``: its folder, if it is not there."""
    import platformdirs  # costs a little, and only those who name no store need it

    folder = platformdirs.user_data_path("kvi", appauthor=False)
    try:
        path = quote(str(folder / "kvi.db"))
    except UnicodeEncodeError:
        raise Failed(
            f"your data directory is no UTF-8, and no URI can name it: {folder}; name a store with "
            "--uri or KVI_URI"
        ) from None
    try:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(
            f"cannot make {folder}: {error.strerror}; name a store with --uri or KVI_URI"
        ) from None
    return f"sqlite:{path}"


uri_file = click.Path(exists=True, dir_okay=False)


def uri_in(file: str) -> str:
    """The URI that a file holds as its only line."""
    try:
        uri = Path(file).read_text("utf-8-sig").strip()  # editors of Windows write a mark
    except UnicodeDecodeError:
        raise Failed(f"{file} is not UTF-8: it should hold a URI") from None
    if not uri or "\n" in uri:
        raise Failed(f"{file} should hold a URI, as its only line")
    return uri


class Seconds(click.FloatRange):
    """A number of seconds within a range; ``nan``, which no comparison finds out, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As the range does."""
        number = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return number


class KeyType(click.types.StringParamType):
    """A key, or the beginning of keys; `kvi shell` completes it."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The keys that begin so."""
        from click.shell_completion import CompletionItem

        context = ctx.find_object(Context)
        if context is None or context.keys is None:
            return []
        return [CompletionItem(key) for key in context.keys(context, incomplete)]


KEY = KeyType()

prefix_option = click.option(
    "--prefix", type=KEY, metavar="TEXT", help='All keys that begin so; "" is everything.'
)
start_option = click.option("--start", type=KEY, metavar="KEY", help="All keys from this one on.")
end_option = click.option("--end", type=KEY, metavar="KEY", help="All keys before this one.")


class Lazy(click.Group):
    """Imports a subcommand when it is asked for, so that ``kvi get`` pays for nothing else."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The subcommand of this name."""
        if name not in _COMMANDS:
            return None
        module = import_module(f"kvi.cli.{_COMMANDS[name][0]}")
        command: click.Command = getattr(module, f"{name}_")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name tells the one that may be meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, n=1)
            if near:
                raise click.UsageError(
                    f"{error.message} Did you mean {near[0]!r}?", ctx=ctx
                ) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(summaries().items()))


def common(function: F) -> F:
    """Give a subcommand the options that all of them take, and `Context` as first argument."""

    def remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value == "" and parameter.name == "uri":
            raise click.UsageError("--uri is empty: name a store, or leave it out.", ctx=ctx)
        if parameter.name == "uri_from_file" and value is not None:
            value = uri_in(value)
        if value is not None and value is not False:
            setattr(ctx.ensure_object(Context), str(parameter.name), value)
        return value

    def option(names: Sequence[str], told: str, **given: Any) -> Callable[[F], F]:
        return click.option(*names, help=told, expose_value=False, callback=remember, **given)

    for decorate in (
        option(["--debug"], "Show the traceback of an error.", is_flag=True),
        option(["--json"], "Print JSON, one object a line.", is_flag=True),
        option(
            ["--timeout"], "How long a call may take. Default: 5.", type=float, metavar="SECONDS"
        ),
        option(
            ["--read-only"],
            "Refuse whatever could write.",
            is_flag=True,
            envvar="KVI_READ_ONLY",
            show_envvar=True,  # in the error, too
        ),
        option(["--namespace"], "See only the keys below NAME/.", metavar="NAME"),
        option(
            ["--uri-file", "uri_from_file"],
            "A file that holds the URI, so that no list of processes shows its secrets.",
            type=uri_file,
            metavar="FILE",
        ),
        option(
            ["--uri"],
            "The store. Default: the variable KVI_URI, else a SQLite file of your own.",
            metavar="URI",
        ),
    ):  # the last one comes first in the help
        function = decorate(function)
    return click.pass_obj(function)  # type: ignore[return-value]


def command(
    name: str, examples: str, cls: type[click.Command] = click.Command
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a subcommand with the common options and examples."""
    shown = "\n".join(f"  {line}" for line in examples.strip().split("\n"))

    def make(function: Callable[..., Any]) -> click.Command:
        return click.command(
            name,
            cls=cls,
            short_help=_COMMANDS[name][1],
            epilog=f"\b\nExamples:\n{shown}",
            context_settings={"help_option_names": ["-h", "--help"]},
        )(common(function))

    return make


@click.command(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    "  kvi put greeting hello && kvi get greeting\n"
    "  kvi --uri etcd://127.0.0.1:2379 ls\n"
    "  KVI_URI=consul://127.0.0.1:8500 kvi watch --prefix jobs/\n\n"
    "Exit codes: 0 found or done, 1 not found or test failed, 2 usage, 3 store not available,\n"
    "4 outcome unknown, 75 somebody else holds the lock.",
)
@click.version_option(message="kvi %(version)s", package_name="kvi-core")
@common
def app(context: Context) -> None:
    """Look into key-value and coordination stores, from a shell.

    The store comes from --uri, else from the variable KVI_URI, else it is a SQLite file in your
    data directory: memory, SQLite, etcd, Consul and other plugins are used the same way.
    """


def run(arguments: list[str]) -> int:
    """Run the command of this process; returns the exit code."""
    context = Context()
    # Retries are warnings of the library; the command tells how it ended.
    logging.getLogger("kvi").addHandler(logging.NullHandler())
    _prepare_streams()
    for number in (*ENDING, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, context.end)
    return perform(arguments, context)


def perform(arguments: list[str], context: Context) -> int:
    """Run one command; returns the exit code, after telling errors in a line or two."""
    try:
        if asked := os.environ.get("_KVI_COMPLETE"):
            from click.shell_completion import shell_complete

            return shell_complete(app, {}, "kvi", "_KVI_COMPLETE", asked)
        with app.make_context("kvi", arguments, obj=context) as ctx:
            code = app.invoke(ctx)
        sys.stdout.flush()
        context.go_on()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except Ended as error:
        if error.number == signal.SIGINT and sys.stderr.isatty():
            click.echo(err=True)  # behind the ^C
        return 128 + error.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _no_reader()
    except Exception as error:  # noqa: BLE001  (told, with its exit code)
        if context.debug and not isinstance(error, click.ClickException):
            import traceback

            traceback.print_exc()
        return told(error)
    finally:
        # A second signal while it lets go ends it at once; leases end by themselves.
        with suppress(KeyboardInterrupt, BrokenPipeError):
            context.close()
        _empty_output()


def _prepare_streams() -> None:
    """Closed ones lead nowhere; pipes are UTF-8 in any locale; no text steers a terminal."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            if not stream.isatty():
                stream.reconfigure(encoding="utf-8", newline="\n")
            stream.reconfigure(errors="backslashreplace")
            if name == "stderr":
                stream = Notes(stream)
            setattr(sys, name, Terminal(stream) if stream.isatty() else stream)


def told(error: Exception) -> int:
    """Tell an error; returns its exit code."""
    if isinstance(error, click.UsageError):
        # An argument that is out of place may be a URI.
        click.UsageError(hidden(error.format_message()), error.ctx).show()
        return USAGE
    if isinstance(error, click.ClickException):
        _say(error.format_message())
        return error.exit_code
    if isinstance(error, KviError):
        _say(f"{type(error).__name__}: {error}")
        if sys.stderr.isatty():
            _say(f"`kvi explain {type(error).__name__}` tells more")
        if isinstance(error, OutcomeUnknown):
            return UNKNOWN
        if isinstance(error, (kvi.LockTimeout, kvi.Conflict)):
            return NOT_FOUND
        return USAGE if isinstance(error, _USAGE_ERRORS) else UNAVAILABLE
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        _say(f"{name}{error.strerror or error}")
        full = error.errno in {errno.ENOSPC, errno.EIO, errno.EDQUOT}
        return UNAVAILABLE if full else USAGE
    if isinstance(error, ValueError) and "embedded null" in str(error):  # the system's interface
        _say("no name of a file can hold a NUL")
        return USAGE
    _say(f"this is a mistake of kvi: {type(error).__name__}: {error}; --debug shows where")
    return UNAVAILABLE


def _say(text: str) -> None:
    click.echo(f"kvi: {text}", err=True)


def _no_reader() -> int:
    """Nobody reads the output any more: what is left of it goes nowhere, without a word."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NO_READER


def _empty_output() -> None:
    """Write what is left of the output; Python would try it at its end, and take its own code."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _no_reader()
