"""What was measured, as a page, and what of it falls short.

`python -m benchmarks.page FILE` writes docs/benchmarks.md from what `python -m benchmarks --json
FILE` has written; with `--beside EARLIER`, another run's, it says how well the two agree. With
`--check` it writes nothing, prints what does not reach its target, and ends with 1 if anything does
not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks.measure import AGAIN, FLOOR, KVI, Comparison
from benchmarks.reasons import REASONS
from benchmarks.report import shown

_AIM = re.compile(r"≤ ([0-9.]+)× floor$")
_WORTH_SHOWING = 12.0  # times the floor
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

_HEAD = """# Benchmarks

Made by `make bench`, on one machine with two cores; nothing here is a promise. Each row is kvi
beside the *floor*, the least work that could do the job: a dict under a lock, raw `sqlite3`
with the same durability, a bare gRPC stub, bare `http.client`. All contenders run in turn, in
many short rounds; a ratio is the median of those within a round, with the interval that chance
explains (95 %). *Chance* is the floor beside itself: what this machine does without any help.
`make bench-check` prints what falls short of its target. How calls grow with what there is stands
in [Growth](growth.md).

![kvi beside the floor](images/benchmarks.svg)
"""


def page(report: dict[str, Any], earlier: dict[str, Any] | None = None) -> str:
    """The page; ``earlier`` is another run on the same machine."""
    lines = [_HEAD, "Measured on:", ""]
    lines += [f"- {line}" for line in report["machine"]]
    for store, rows in groupby(report["rows"], key=lambda row: str(row["store"])):
        lines += ["", f"## {store[0].upper()}{store[1:]}", "", *_table(list(rows))]
    short = list(falls_short(report))
    lines += ["", "## What falls short", ""]
    lines += [f"- {_explained(line)}" for line in short] or ["Nothing."]
    if earlier is not None:
        lines += ["", "## Two runs", "", *_agreement(report, earlier)]
    if report["notes"]:
        lines += ["", "## Left out", "", *(f"- {note}" for note in report["notes"])]
    return "\n".join(lines) + "\n"


def _explained(line: str) -> str:
    what, _, measured = line.partition(": ")
    reason = REASONS.get(what)
    return f"**{what}**: {measured}." + (f" {reason}" if reason else "")


def falls_short(report: dict[str, Any]) -> Iterator[str]:
    """What does not reach its target, a line each."""
    for row in report["rows"]:
        for target in row["targets"]:
            if target["reached"] is False:
                what = f"{row['store']}, {row['case']}"
                yield f"{what}: {target['measured']}, aimed at {target['aim']}"


def _agreement(report: dict[str, Any], earlier: dict[str, Any]) -> Iterator[str]:
    """How well two runs agree, and which rows do not."""
    before = {(row["store"], row["case"]): Comparison(row["samples"]) for row in earlier["rows"]}
    # The asynchronous rows of a store come behind its others, by names of their own.
    both = [
        (f"{row['store']}, {row['case']}", Comparison(row["samples"]), before[key])
        for row in report["rows"]
        if (key := (row["store"], row["case"])) in before
    ]
    apart = [(what, now, then) for what, now, then in both if not agree(now, then)]
    yield (
        f"An earlier run on the same machine agrees in {len(both) - len(apart)} of {len(both)} "
        "rows: the intervals of both ratios overlap, once they are widened by what the floor "
        "beside itself differs from 1 in either run."
        + (" These are further apart, most of them where threads wake one another:" * bool(apart))
    )
    if apart:
        yield ""
    for what, now, then in apart:
        yield f"- {what}: {then.ratio().median:.2f}×, then {now.ratio().median:.2f}×"


def agree(one: Comparison, other: Comparison) -> bool:
    """Whether two runs of a case tell the same, but for what chance explains."""
    chance = 1.0
    for run in (one, other):
        if AGAIN in run.samples:
            again = run.ratio(AGAIN)
            chance = max(chance, again.high, 1 / again.low)
    a, b = one.ratio(), other.ratio()
    return a.low / chance <= b.high and b.low / chance <= a.high


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| case | kvi | floor | kvi ÷ floor | chance | target | others |"
    yield "|---|---:|---:|---|---|---|---|"
    for row in rows:
        compared = Comparison(row["samples"])
        ratio = compared.ratio()
        chance = f"{compared.ratio(AGAIN).median:.2f}×" if AGAIN in compared.samples else ""
        others = [
            f"{name} {shown(compared.seconds(name))}" for name in compared.peers if name != AGAIN
        ]
        cells = (
            row["case"],
            shown(compared.seconds(KVI)),
            shown(compared.seconds(FLOOR)),
            f"**{ratio.median:.2f}×** ({ratio.low:.2f}–{ratio.high:.2f})",
            chance,
            "<br>".join(map(_goal, row["targets"])),
            "; ".join([*others, *[row["remark"]] * bool(row["remark"])]),
        )
        yield f"| {' | '.join(cells)} |"


def _bars(report: dict[str, Any]) -> Iterator[charts.Bar]:
    """The rows whose ratio to the floor says something: not those of no target beside a dict."""
    for row in report["rows"]:
        ratio = Comparison(row["samples"]).ratio()
        aims = [match[1] for target in row["targets"] if (match := _AIM.match(target["aim"]))]
        if aims or ratio.median <= _WORTH_SHOWING:
            label = f"{row['store']}: {row['case']}"
            aim = float(aims[0]) if aims else None
            yield charts.Bar(label, ratio.median, ratio.low, ratio.high, aim)


def _goal(target: dict[str, Any]) -> str:
    mark = {True: "✓", False: "✗", None: "–"}[target["reached"]]
    return f"{mark} {target['aim']}"


def main(argv: list[str]) -> int:
    """Write the page, or tell what falls short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page")
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="print what falls short, write nothing"
    )
    parser.add_argument("--beside", type=Path, help="another run, if it is there")
    options = parser.parse_args(argv)
    report = json.loads(options.file.read_text())
    if not options.check:
        beside = options.beside
        earlier = json.loads(beside.read_text()) if beside and beside.exists() else None
        PAGE.write_text(page(report, earlier), encoding="utf-8")
        charts.ratios(list(_bars(report)), charts.IMAGES / "benchmarks.svg")
        return 0
    short = list(falls_short(report))
    for line in short:
        print(line)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
