"""The rows of a report, their targets, and how they are shown and saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.measure import AGAIN, FLOOR, KVI, Comparison, Estimate


@dataclass(frozen=True, slots=True)
class Target:
    """What was aimed at, what came out, and whether that is it (``None``: not measured)."""

    aim: str
    measured: str
    reached: bool | None


@dataclass(frozen=True, slots=True)
class Row:
    """One case on one store."""

    store: str
    case: str
    comparison: Comparison
    targets: tuple[Target, ...] = ()
    remark: str = ""


@dataclass(slots=True)
class Report:
    """What ran, on what, and what was left out."""

    machine: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything, each sample included, in seconds."""
        return {
            "machine": self.machine,
            "notes": self.notes,
            "rows": [
                {
                    "store": row.store,
                    "case": row.case,
                    "remark": row.remark,
                    "median_seconds": {
                        name: row.comparison.seconds(name) for name in row.comparison.samples
                    },
                    "samples": {k: list(v) for k, v in row.comparison.samples.items()},
                    "targets": [
                        {"aim": t.aim, "measured": t.measured, "reached": t.reached}
                        for t in row.targets
                    ],
                }
                for row in self.rows
            ],
        }


def at_most(comparison: Comparison, limit: float, to: str = FLOOR) -> Target:
    """At most ``limit`` times as long as ``to``."""
    return _ratio(comparison, to, f"≤ {limit:g}× {to}", lambda ratio: ratio <= limit)


def faster(comparison: Comparison, times: float, than: str) -> Target:
    """At least ``times`` the rate of the peer ``than``."""
    aim = f"faster than {than}" if times == 1 else f"≥ {times:g}× the rate of {than}"
    if than not in comparison.samples:
        return Target(aim, "not installed", None)
    rate = comparison.ratio(than, KVI)
    return Target(aim, f"{rate.median:.2f}×", rate.median >= times)


def within(comparison: Comparison, seconds: float) -> Target:
    """At most ``seconds`` longer than the floor."""
    over = comparison.over()
    return Target(
        f"< {shown(seconds)} over {FLOOR}", f"+{shown(over.median)}", over.median < seconds
    )


def _ratio(comparison: Comparison, to: str, aim: str, reached: Any) -> Target:
    ratio = comparison.ratio(KVI, to)
    return Target(aim, _interval(ratio), bool(reached(ratio.median)))


def _interval(ratio: Estimate) -> str:
    return f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})"


def shown(seconds: float) -> str:
    """A duration with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size * 0.9995:  # what three digits round up to it
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def show(report: Report) -> None:
    """Print the report; a pipe gets a table wide enough for its longest lines."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=165)
    for line in report.machine:
        console.print(line, soft_wrap=True)
    console.print(
        "Times are medians per call. Ratios are medians over interleaved rounds, with the interval "
        "that chance explains (95 %); “chance” is the floor against itself.\n"
    )
    if report.rows:
        console.print(_table(report.rows))
    for note in report.notes:
        console.print(f"- {note}", soft_wrap=True)


def _table(rows: Iterable[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case", no_wrap=True)
    for name in ("kvi", "floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kvi ÷ floor", no_wrap=True)
    table.add_column("chance", no_wrap=True)
    table.add_column("target", no_wrap=True)
    table.add_column("reached", no_wrap=True)
    table.add_column("peers")
    store = ""
    for row in rows:
        if row.store != store:
            store = row.store
            table.add_row(Text(store, style="bold"))
        compared = row.comparison
        chance = compared.ratio(AGAIN) if AGAIN in compared.samples else None
        table.add_row(
            f"  {row.case}",
            shown(compared.seconds(KVI)),
            shown(compared.seconds(FLOOR)),
            _interval(compared.ratio()),
            "" if chance is None else f"{chance.median:.2f}×",
            "\n".join(target.aim for target in row.targets) or "–",
            Text("\n").join(map(_verdict, row.targets)),
            ", ".join(
                [f"{name} {shown(compared.seconds(name))}" for name in compared.peers]
                + [row.remark] * bool(row.remark)
            ),
        )
    return table


def _verdict(target: Target) -> Text:
    if target.reached is None:
        return Text(target.measured)
    word, style = ("yes", "green") if target.reached else ("NO", "bold red")
    return Text(f"{word}, {target.measured.partition(' (')[0]}", style=style)
