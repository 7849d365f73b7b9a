"""`lock lease temp`: run a command while something is held, and end it when that is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO

import click

import kvi
from kvi.cli.app import CONFLICT, KEY, UNAVAILABLE, Context, Failed, Seconds, command
from kvi.cli.jobs import Job, grace_option
from kvi.cli.leasing import revoke
from kvi.cli.output import encoding_option
from kvi.cli.values import value_of
from kvi.sync.loss import Loss

_WORDS = "kvi.words"
_WAKE = 0.25  # seconds; some systems wake from an endless wait for no signal


class WithCommand(click.Command):
    """A subcommand with another command behind ``--``, whose options are its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what stands behind ``--`` for `words_of`."""
        ours, words = args, []
        if "--" in args:
            separator = args.index("--")
            if "--" in args[separator + 1 :] and self._wants_more(ctx, args[:separator]):
                separator = args.index("--", separator + 1)  # the first one ended the options
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

    def _wants_more(self, ctx: click.Context, args: list[str]) -> bool:
        """Whether arguments that it needs are not among these."""
        try:
            found, _, _ = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError:
            return False
        needed = [one for one in self.params if isinstance(one, click.Argument) and one.required]
        return not all(isinstance(found.get(str(one.name)), str) for one in needed)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """With the command in its place."""
        return [*super().collect_usage_pieces(ctx), "-- CMD [ARG]..."]


def words_of(usage: str | None = None) -> list[str]:
    """The command behind ``--``; refused if there is none and ``usage`` wants one."""
    words: list[str] = click.get_current_context().meta[_WORDS]
    if not words and usage is not None:
        raise click.UsageError(f"What is to be run? kvi {usage} -- CMD [ARG]...")
    if any("\0" in word for word in words):
        raise click.UsageError("No word of a command can hold a NUL.")
    return words


def run_while(
    lost: Loss,
    what: str,
    words: Sequence[str],
    env: dict[str, str],
    grace: float,
    stdin: IO[bytes] | None = None,
) -> int:
    """Run a command until it ends, or what is held is lost; returns the exit code.

    After a loss the command gets a SIGTERM, and ``grace`` seconds later a SIGKILL.
    """
    told = False

    def is_held() -> bool:
        nonlocal told
        if lost.is_set() and not told:
            told = True
            click.echo(f"kvi: {what} was lost; ending {words[0]!r}", err=True)
        return not told

    with Job(words, env, stdin=stdin) as job:
        lost.add_callback(job.look)
        code = job.wait(is_held, grace)
    return UNAVAILABLE if told else exit_code(code)


def exit_code(code: int) -> int:
    """The exit code of who ran a command that ended so, as a shell's."""
    return code if code >= 0 else 128 - code


grace_after_loss = grace_option("After a loss, how long the command may take to end.")
ttl_option = click.option(
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
    "-w", "--wait", type=Seconds(0), metavar="SECONDS",
    help="How long to wait for the lock; 0 tries once. Default: without end.",
)  # fmt: skip
@click.option(
    "--conflict-exit-code", "conflict", type=click.IntRange(0, 255), default=CONFLICT,
    show_default=True, metavar="N", help="What to end with if the lock is not had in time.",
)  # fmt: skip
@ttl_option
@grace_after_loss
def lock_(
    context: Context, name: str, wait: float | None, conflict: int, ttl: float, grace: float
) -> int:
    """Run CMD while holding the lock NAME; the exit code is that of CMD.

    CMD finds KVI_LOCK_NAME and KVI_LOCK_FENCE in its environment; the fence is larger with every
    holder. If the lock is lost CMD is ended, with what it started, and the exit code is 3; if it
    cannot be had in time, CMD is not run and the exit code is 75. The locks of a store are those of
    `etcdctl lock` and `consul lock`.
    """
    words = words_of("lock NAME")
    with context.store() as store:
        lock = store.lock(name, ttl=ttl)
        if not lock.acquire(wait):
            raise Failed(f"somebody else holds the lock {name!r}", conflict)
        env = context.named() | {"KVI_LOCK_NAME": name, "KVI_LOCK_FENCE": str(lock.fence)}
        code = run_while(lock.lost, f"the lock {name!r}", words, env, grace)
        let_go(lock.release)
        return code


@command(
    "lease",
    "kvi lease -- sh -c 'kvi put member/ada here --lease $KVI_LEASE && sleep 1'\n"
    "kvi put session/bob here --ttl 600\n"
    "kvi lease revoke $(kvi leases | grep session/bob | cut -f 1)",
    cls=WithCommand,
)
@click.argument("ending", nargs=-1, metavar="[revoke ID]")
@click.option("-y", "--yes", is_flag=True, help="With revoke: do not ask, whatever keys it has.")
@ttl_option
@grace_after_loss
def lease_(context: Context, ending: tuple[str, ...], yes: bool, ttl: float, grace: float) -> int:
    """Run CMD while a lease is kept alive; what was stored with it vanishes afterwards.

    CMD finds KVI_LEASE in its environment, for `kvi put --lease`. If the lease is lost CMD is
    ended, and the exit code is 3; otherwise it is that of CMD.

    `kvi lease revoke ID` runs nothing, but ends a lease of anybody's, and its keys with it. ID is
    what `kvi leases` shows first, or hexadecimal behind 0x, or on Consul a session. The exit code
    is 1 if there is no such lease. A terminal is asked if there are keys; without one, more than
    1,000 keys want --yes.
    """
    if ending:
        if words_of() or len(ending) != 2 or ending[0] != "revoke":
            raise click.UsageError("kvi lease -- CMD [ARG]..., or kvi lease revoke ID")
        return revoke(context, ending[1], yes=yes)
    words = words_of("lease")
    with context.store() as store:
        lease = store.lease(ttl)
        env = context.named() | {"KVI_LEASE": str(lease.id)}
        code = run_while(lease.lost, "the lease", words, env, grace)
        let_go(lease.revoke)
        return code


@command(
    "temp",
    "kvi temp members/ada here -- sleep 1\nkvi temp members/ada here   # until Ctrl-C",
    cls=WithCommand,
)
@click.argument("key", type=KEY)
@click.argument("value", required=False)
@ttl_option
@grace_after_loss
@encoding_option
def temp_(
    context: Context, key: str, value: str | None, ttl: float, grace: float, encoding: str
) -> int:
    """Keep KEY alive while CMD runs, or until Ctrl-C; then it is deleted.

    VALUE is as for `put`; without it the host's name and the process id are stored. If the key's
    lease is lost CMD is ended, and the exit code is 3; otherwise it is that of CMD.
    """
    words = words_of()
    data = None if value is None else value_of(value, encoding)
    with context.store() as store:
        temporary = store.temp_key(key, data, ttl=ttl)
        if words:
            env = context.named() | {"KVI_KEY": key}
            code = run_while(temporary.lost, f"the key {key!r}", words, env, grace)
        else:
            code = _until_lost(temporary, key)
        let_go(temporary.close)
        return code


def _until_lost(temporary: kvi.TempKey, key: str) -> int:
    """Wait; a signal that ends the wait ends the command, which lets go of what it holds."""
    while not temporary.lost.wait(_WAKE):
        pass
    click.echo(f"kvi: the key {key!r} was lost", err=True)
    return UNAVAILABLE


def let_go(release: Callable[[], object]) -> None:
    """Release; a failure is told, and the exit code stays that of the command."""
    try:
        release()
    except kvi.LeaseLost:
        pass  # told already
    except kvi.KviError as error:
        click.echo(f"kvi: it is free once its time is up: {error}", err=True)
