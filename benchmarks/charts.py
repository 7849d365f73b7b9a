"""Charts of what was measured, as SVG that can be read on a light page and on a dark one.

Needs matplotlib: the dependency group `charts`, which `make bench` and `make growth` install.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

IMAGES = Path(__file__).parents[1] / "docs" / "images"

_INK, _FAINT = "#808080", "#80808055"  # readable on white and on black
_COLOURS = ("#2a7fd4", "#e07020", "#2e9e5b", "#b05bc8")
_DASHES = ("-", "--", ":", "-.")


class Line(NamedTuple):
    """One line of a chart: for its legend, its look, and its points."""

    label: str
    colour: int
    dashes: int
    points: Sequence[tuple[float, float]]


class Bar(NamedTuple):
    """One row of the chart of ratios: what, how many times the floor, and what was aimed at."""

    label: str
    ratio: float
    low: float
    high: float
    aim: float | None


def ratios(bars: Sequence[Bar], file: Path) -> None:
    """How many times as long as the floor each row takes, on a logarithmic axis."""
    with _figure(8.5, 1.2 + 0.24 * len(bars), file) as figure:
        axes = figure.subplots()
        _plain(axes)
        axes.set_xscale("log")
        axes.axvline(1, color=_INK, linewidth=1)
        for place, bar in enumerate(reversed(bars)):
            met = bar.aim is None or bar.ratio <= bar.aim
            axes.plot([bar.low, bar.high], [place] * 2, color=_INK, linewidth=1.5)
            axes.plot(bar.ratio, place, "o", color=_COLOURS[0 if met else 1], markersize=5)
            if bar.aim is not None:
                axes.plot(bar.aim, place, "|", color=_COLOURS[2], markersize=11, markeredgewidth=2)
        axes.set_yticks(range(len(bars)), [bar.label for bar in reversed(bars)])
        axes.set_ylim(-0.8, len(bars) - 0.2)
        axes.set_xlabel("kvi ÷ floor (less is better); the bar is what was aimed at")
        _powers(axes.xaxis)
        axes.grid(visible=True, axis="x", color=_FAINT, linewidth=0.5)


def growth(panels: Sequence[tuple[str, str, Sequence[Line]]], file: Path) -> None:
    """A panel for each subject, all axes logarithmic: its title, its unit, its lines."""
    columns = 2
    rows = -(-len(panels) // columns)
    with _figure(9, 3.6 * rows, file) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            title, unit, lines = panel
            _plain(axes)
            axes.set_xscale("log")
            axes.set_yscale("log")
            for line in lines:
                axes.plot(
                    [x for x, _ in line.points],
                    [y for _, y in line.points],
                    _DASHES[line.dashes],
                    color=_COLOURS[line.colour],
                    marker="o",
                    markersize=3,
                    label=line.label,
                )
            axes.set_title(title, color=_INK, fontsize=10)
            axes.set_ylabel(unit)
            axes.grid(visible=True, color=_FAINT, linewidth=0.5)
            _powers(axes.xaxis)
            _powers(axes.yaxis)
            axes.legend(
                frameon=False,
                fontsize=7,
                labelcolor=_INK,
                ncols=2 if len(lines) > 4 else 4,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.1),  # below: nothing is hidden
            )
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)


@contextmanager
def _figure(width: float, height: float, file: Path) -> Iterator[Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": "kvi", "svg.fonttype": "none", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
    axes.tick_params(which="both", colors=_INK, labelsize=8)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _powers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
