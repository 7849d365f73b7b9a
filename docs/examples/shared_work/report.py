"""Tell a run in a few lines."""

from __future__ import annotations

from rich.console import Console

from docs.examples.shared_work.account import Account


def show(account: Account) -> None:
    """Print the account; plain text where the output is no terminal."""
    console = Console(highlight=False)
    console.print(
        f"store    {account.uri}, leases of {account.job.ttl:g} s\n"
        f"did      {len(account.counted)} increments under two locks by {len(account.workers)} "
        f"processes, {len(account.workers) // 2} of them with asyncio, "
        f"in {account.seconds:.1f} s\n",
        soft_wrap=True,
    )
    for check in account.checks():
        mark = "[green]right[/]" if check.holds else "[bold red]WRONG[/]"
        console.print(f"{mark}  {check.claim}", soft_wrap=True)
