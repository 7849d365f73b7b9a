"""Tell a run in a few lines."""

from __future__ import annotations

from rich.console import Console

from docs.examples.device_agent.program import Account


def show(account: Account) -> None:
    """Print the account; plain text where the output is no terminal."""
    console = Console(highlight=False)
    findings = account.findings
    assert findings is not None
    done = account.done
    slowest = max(seconds for seconds, _ in account.loads)
    saved = 1 - findings.stored / findings.whole if findings.whole else 0.0
    console.print(
        f"store    {account.uri}\n"
        f"did      {account.changes:,} changes by {account.agents} agents in "
        f"{account.seconds:.1f} s; {done['conflicts']:,} conflicts, "
        f"{done['unknown outcomes']} unknown outcomes\n"
        f"killed   {account.kills} agents, amid whatever they did; the slowest start took "
        f"{slowest:.2f} s\n"
        f"left     {findings.flows} flows, {findings.meters} meters, {findings.profiles} profiles: "
        f"{findings.stored:,} bytes of records for {findings.whole:,} bytes of profiles "
        f"({saved:.0%} saved)\n",
        soft_wrap=True,
    )
    longest = max(account.converged, default=0.0)
    claims = [
        (
            "every meter counts exactly the flows that use it, every port is given out once",
            not findings.wrong,
        ),
        (
            f"the caches of every agent hold what the store does, after {longest:.2f} s",
            not account.strayed,
        ),
    ]
    for claim, holds in claims:
        mark = "[green]right[/]" if holds else "[bold red]WRONG[/]"
        console.print(f"{mark}  {claim}", soft_wrap=True)
    for fault in account.wrong[:10]:
        console.print(f"       {fault}", soft_wrap=True)
