"""`lock lease temp`: run a command while something is held, and end it when that is lost.

*Who waits for what.* The main thread waits for one event. It is set by a thread that waits for the
command, and by the loss of what is held. Signals that would end `kvi` are passed on to the command,
which may end in good order; then what was held is let go.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

import click

import kvi
from kvi.cli.app import ENDING, NOT_FOUND, UNAVAILABLE, Context, Failed, command
from kvi.cli.output import encoding_option, given

_WORDS = "kvi.words"
_WAKE = 0.25  # seconds between two looks at what a signal may have said


class WithCommand(click.Command):
    """A subcommand with another command behind ``--``, whose options are its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what stands behind ``--`` for `words_of`."""
        ours, words = args, []
        if "--" in args:
            separator = args.index("--")
            if "--" in args[separator + 1 :]:  # the first one ends the options, as everywhere
                separator = args.index("--", separator + 1)
            ours, words = args[:separator], args[separator + 1 :]
        ctx.meta[_WORDS] = words
        try:
            return super().parse_args(ctx, ours)
        except click.UsageError as error:
            if words:
                raise
            raise click.UsageError(
                f"{error.format_message()} A command to run stands behind --.", ctx=ctx
            ) from None

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """With the command in its place."""
        return [*super().collect_usage_pieces(ctx), "-- CMD [ARG]..."]


def words_of(usage: str | None = None) -> list[str]:
    """The command behind ``--``; refused if there is none and ``usage`` wants one."""
    words: list[str] = click.get_current_context().meta[_WORDS]
    if not words and usage is not None:
        raise click.UsageError(f"What is to be run? kvi {usage} -- CMD [ARG]...")
    return words


def run_while(
    held: Callable[[Callable[[], object]], object],
    what: str,
    words: Sequence[str],
    env: dict[str, str],
    grace: float,
) -> int:
    """Run a command until it ends, or what is held is lost; returns the exit code.

    ``held`` is told what to call at a loss. After one the command gets a SIGTERM, and ``grace``
    seconds later a SIGKILL.
    """
    over, lost = threading.Event(), threading.Event()

    def lose() -> None:
        lost.set()
        over.set()

    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came before the command was there

    def send(number: int) -> None:
        assert process is not None
        with suppress(ProcessLookupError):
            if grouped:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            send(number)

    # On a terminal the command shares the foreground, and gets Ctrl-C by itself. Elsewhere it has a
    # group of its own, so that what it started ends with it.
    grouped = os.name == "posix" and not sys.stdin.isatty()
    before = {
        number: signal.signal(number, pass_on)
        for number in (*ENDING, *([signal.SIGINT] if grouped else []))
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    if not grouped and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        process = running = _started(words, env, grouped)
        while early:
            send(early.pop())

        def await_end() -> None:
            running.wait()
            over.set()

        threading.Thread(target=await_end, name="kvi-command", daemon=True).start()
        held(lose)
        while not over.wait(_WAKE):
            pass  # some systems wake from an endless wait for no signal
        if lost.is_set() and running.poll() is None:
            click.echo(f"kvi: {what} was lost; ending {words[0]!r}", err=True)
            send(signal.SIGTERM)
            try:
                running.wait(grace)
            except subprocess.TimeoutExpired:
                send(signal.SIGKILL)
        code = running.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if lost.is_set():
        return UNAVAILABLE
    return code if code >= 0 else 128 - code


def _started(words: Sequence[str], env: dict[str, str], grouped: bool) -> subprocess.Popen[bytes]:
    group = 0 if grouped else None
    try:
        return subprocess.Popen(list(words), env={**os.environ, **env}, process_group=group)
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        raise Failed(f"cannot run {words[0]!r}: {error.strerror}", code) from None


_grace = click.option(
    "--grace", type=click.FloatRange(0), default=5.0, show_default=True, metavar="SECONDS",
    help="After a loss, how long the command may take to end.",
)  # fmt: skip
_ttl = click.option(
    "--ttl", type=float, default=10.0, show_default=True, metavar="SECONDS",
    help="How soon others know that this process has crashed.",
)  # fmt: skip


@command(
    "lock",
    "kvi lock backup -- echo nobody else does this now\n"
    "kvi lock backup --wait 0 -- true || echo somebody does\n"
    "kvi lock jobs -- sh -c 'echo fence $KVI_LOCK_FENCE'",
    cls=WithCommand,
)
@click.argument("name")
@click.option(
    "-w", "--wait", type=click.FloatRange(0), metavar="SECONDS",
    help="How long to wait for the lock; 0 tries once. Default: without end.",
)  # fmt: skip
@_ttl
@_grace
def lock_(context: Context, name: str, wait: float | None, ttl: float, grace: float) -> int:
    """Run CMD while holding the lock NAME; the exit code is that of CMD.

    CMD finds KVI_LOCK_NAME and KVI_LOCK_FENCE in its environment; the fence is larger with every
    holder. If the lock is lost CMD is ended, and the exit code is 3; if it cannot be had in time,
    CMD is not run and the exit code is 1. The locks of a store are those of `etcdctl lock` and
    `consul lock`. Where there is no terminal, what CMD started is ended with it; on one only CMD.
    """
    words = words_of("lock NAME")
    with context.store() as store:
        lock = store.lock(name, ttl=ttl)
        if not lock.acquire(wait):
            raise Failed(f"somebody else holds the lock {name!r}", NOT_FOUND)
        env = context.named() | {"KVI_LOCK_NAME": name, "KVI_LOCK_FENCE": str(lock.fence)}
        code = run_while(lock.lost.add_callback, f"the lock {name!r}", words, env, grace)
        _let_go(lock.release)
        return code


@command(
    "lease",
    "kvi lease -- sh -c 'kvi put member/ada here --lease $KVI_LEASE && sleep 1'",
    cls=WithCommand,
)
@_ttl
@_grace
def lease_(context: Context, ttl: float, grace: float) -> int:
    """Run CMD while a lease is kept alive; what was stored with it vanishes afterwards.

    CMD finds KVI_LEASE in its environment, for `kvi put --lease`. If the lease is lost CMD is
    ended, and the exit code is 3; otherwise it is that of CMD.
    """
    words = words_of("lease")
    with context.store() as store:
        lease = store.lease(ttl)
        env = context.named() | {"KVI_LEASE": str(lease.id)}
        code = run_while(lease.lost.add_callback, "the lease", words, env, grace)
        _let_go(lease.revoke)
        return code


@command(
    "temp",
    "kvi temp members/ada here -- sleep 1\nkvi temp members/ada here   # until Ctrl-C",
    cls=WithCommand,
)
@click.argument("key")
@click.argument("value", required=False)
@_ttl
@_grace
@encoding_option
def temp_(
    context: Context, key: str, value: str | None, ttl: float, grace: float, encoding: str
) -> int:
    """Keep KEY alive while CMD runs, or until Ctrl-C; then it is deleted.

    Without VALUE the host's name and the process id are stored. If the key's lease is lost CMD is
    ended, and the exit code is 3; otherwise it is that of CMD.
    """
    data = None if value is None else given(value, encoding)
    words = words_of()
    with context.store() as store:
        temporary = store.temp_key(key, data, ttl=ttl)
        if words:
            env = context.named() | {"KVI_KEY": key}
            code = run_while(temporary.lost.add_callback, f"the key {key!r}", words, env, grace)
        else:
            code = _until_lost(temporary, key)
        _let_go(temporary.close)
        return code


def _until_lost(temporary: kvi.TempKey, key: str) -> int:
    """Wait; a signal that ends the wait ends the command, which lets go of what it holds."""
    while not temporary.lost.wait(_WAKE):
        pass
    click.echo(f"kvi: the key {key!r} was lost", err=True)
    return UNAVAILABLE


def _let_go(release: Callable[[], object]) -> None:
    """Release; a failure is told, and the exit code stays that of the command."""
    try:
        release()
    except kvi.LeaseLost:
        pass  # told already
    except kvi.KviError as error:
        click.echo(f"kvi: it is free once its time is up: {error}", err=True)
