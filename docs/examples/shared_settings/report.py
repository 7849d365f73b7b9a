"""Tell a run in words and tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from docs.examples.shared_settings.program import Account
from docs.examples.shared_settings.settings import WORKER
from docs.examples.shared_settings.worker import Tally


def show(account: Account) -> None:
    """Print the account; plain text where the output is no terminal."""
    console = Console(highlight=False)
    console.print(
        f"store    {account.uri} by {', '.join(account.plugins) or 'an unknown plugin'}\n"
        f"did      {account.operations:,} operations by {len(account.tallies)} processes in "
        f"{account.seconds:.2f} s: {account.rate:,.0f} a second\n"
        f"raced    {account.lost:,} lost races, all tried again; a hit took "
        f"{milliseconds(account.hit_seconds(50))} (median), "
        f"{milliseconds(account.hit_seconds(99))} (99 %)\n",
        soft_wrap=True,
    )
    console.print(_workers(account.tallies))
    console.print()
    console.print(_left(account))
    console.print()
    for check in account.checks:
        mark = "[green]right[/]" if check.holds else "[bold red]WRONG[/]"
        console.print(f"{mark}  {check.claim}", soft_wrap=True)


def _workers(tallies: list[Tally]) -> Table:
    table = _table("worker", "hits", "lost races", "transfers", "lost races", "operations/s")
    for tally in tallies:
        table.add_row(
            tally.name,
            f"{tally.hits:,}",
            f"{tally.lost_hits:,}",
            f"{tally.transfers:,}",
            f"{tally.lost_transfers:,}",
            f"{tally.operations / tally.seconds:,.0f}",
        )
    return table


def _left(account: Account) -> Table:
    table = _table("left in the store", "value", "revision", "since", "writes")
    table.columns[1].justify = "left"
    for entry in account.entries:
        if entry.key.startswith(WORKER):  # told above
            continue
        table.add_row(
            entry.key,
            entry.text,
            f"{entry.revision:,}",
            f"{entry.create_revision:,}",
            "–" if entry.version is None else f"{entry.version:,}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def milliseconds(seconds: float) -> str:
    """A short time."""
    return f"{seconds * 1e3:.3g} ms"
