"""Charts of studies and of data as SVG text, to stand in a page or in files of their own.

They can be read in black and white: shape, line and filling tell series apart, colour only beside them. matplotlib is
imported when a chart is drawn.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdmpc2.reporting.plots import PALETTE, short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
_GRID = "#E0E0E0"
_WIDTH = 6.4  # inches: two thirds of a wide page, and legible on a telephone
_LONGEST_LABEL = 44  # characters


@dataclass(frozen=True)
class Value:
    """A figure with its 95% interval, None for none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Mark:
    """A row of a chart: a value for each of its kinds, None where one is missing, and what is published."""

    label: str
    values: tuple[Value | None, ...]
    published: float | None = None


@dataclass(frozen=True)
class Point:
    """A point of a line."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


def interval_chart(
    marks: Sequence[Mark], kinds: Sequence[str], name: str, title: str, xlabel: str, *, zero: bool = False
) -> str:
    """A row for each mark, with a shape for each of `kinds` (filled dot, hollow diamond) and its interval, and a hollow
    square for what is published.

    `zero` draws the line that a difference is to be seen against. Raises ValueError for a mark with other than as many
    values as kinds.
    """
    high = 0.2 + 0.12 * len(kinds)
    figure, axes = _figure(_WIDTH, 1.3 + high * len(marks), title)
    for row, mark in enumerate(marks):
        for index, value in enumerate(_shown(mark, len(kinds))):
            place = row + (index - (len(kinds) - 1) / 2) * 0.3
            if value is None:
                continue
            colour = PALETTE[index]
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [place] * 2, color=colour, linewidth=1.8, marker="|", markersize=7)
            axes.plot([value.value], [place], linestyle="none", **_look(index))
        if mark.published is not None:
            axes.plot([mark.published], [row], linestyle="none", **_PUBLISHED)
        if mark.published is None and not any(mark.values):
            axes.annotate("missing", (0.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    if zero:
        axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(marks)), [_short(mark.label) for mark in marks])
    axes.set_ylim(len(marks) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    keys = [(kind, _look(index)) for index, kind in enumerate(kinds)] if len(kinds) > 1 else []
    if any(mark.published is not None for mark in marks):
        keys = [(kind, _look(index)) for index, kind in enumerate(kinds)]
        keys.append(("published (MT30, full scale)", _PUBLISHED))
    if keys:
        _keys(axes, keys)
    return _svg(figure, name)


def _shown(mark: Mark, kinds: int) -> list[Value | None]:
    if len(mark.values) != kinds:
        raise ValueError(f"{mark.label} has {len(mark.values)} values, expected {kinds}")
    return [value if value is not None and math.isfinite(value.value) else None for value in mark.values]


def line_chart(
    series: Mapping[str, Sequence[Point]],
    name: str,
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    lines: bool = True,
    labelled: bool = False,
) -> str:
    """A line with markers for each series, and intervals as vertical bars; without `lines`, points alone.

    `labelled` writes each series' name beside its last point too.
    """
    figure, axes = _figure(_WIDTH, 3.8 + 0.16 * len(series), title)
    for index, (label, points) in enumerate(series.items()):
        shown = [point for point in points if math.isfinite(point.y)]
        look = index % len(PALETTE)
        many = len(shown) > 30
        axes.plot(
            [point.x for point in shown],
            [point.y for point in shown],
            color=PALETTE[look],
            linestyle=_LINES[look] if lines else "none",
            linewidth=1.8,
            marker=_MARKERS[look],
            markevery=(index % 8, 8) if many else None,
            markersize=6,
            markerfacecolor="white" if index % 2 else PALETTE[look],
            label=_short(label),
        )
        for point in shown:
            if point.low is not None and point.high is not None:
                axes.plot([point.x] * 2, [point.low, point.high], color=PALETTE[look], linewidth=1.2, marker="_")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.margins(x=0.15 if labelled else 0.04, y=0.1)
    if labelled:
        ends = {label: points[-1] for label, points in series.items() if points and math.isfinite(points[-1].y)}
        _label_points(axes, ends)
    else:
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, handlelength=3)
    return _svg(figure, name)


def _label_points(axes: Axes, points: Mapping[str, Point]) -> None:
    """A label right of each point, moved down where one would be written over another."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for label, point in sorted(points.items(), key=lambda item: -item[1].y):
        x, y = (point.x - left) / (right - left), (point.y - low) / (high - low)
        for other_x, other_y in placed:  # from the top down
            if abs(x - other_x) < 0.35 and abs(y - other_y) < _LINE_HEIGHT:
                y = other_y - _LINE_HEIGHT
        placed.append((x, y))
        axes.annotate(
            _short(label),
            (x, y),
            (7, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


@dataclass(frozen=True)
class Distribution:
    """A row of `distribution_chart`: how many values lie in each bin, and their least, quartiles and largest."""

    label: str
    counts: tuple[int, ...]
    quartiles: tuple[float, float, float, float, float]


def distribution_chart(rows: Sequence[Distribution], edges: Sequence[float], name: str, title: str, xlabel: str) -> str:
    """A histogram for each row, as high as the row in its fullest bin, and under it a line with its quartiles.

    Args:
        rows: each with counts of the bins between `edges`, one fewer than these.
        edges: ascending, shared by all rows.
        name: makes the chart's ids differ from those of others in a page.
        title, xlabel: of the chart.
    """
    figure, axes = _figure(_WIDTH, 1.1 + 0.4 * len(rows), title)
    for row, shown in enumerate(rows):
        most = max(shown.counts, default=0) or 1
        heights = [row - 0.72 * count / most for count in shown.counts]
        axes.stairs(heights, edges, baseline=row, fill=True, color=PALETTE[5], linewidth=0)
        axes.stairs(heights, edges, baseline=row, color=PALETTE[0], linewidth=0.7)
        least, lower, median, upper, largest = shown.quartiles
        under = row + 0.13
        axes.plot([least, largest], [under] * 2, color="black", linewidth=0.8)
        axes.plot([lower, upper], [under] * 2, color="black", linewidth=3.2, solid_capstyle="butt")
        axes.plot([median], [under], color="black", marker="o", markersize=4.5, markerfacecolor="white")
    axes.set_yticks(range(len(rows)), [_short(shown.label) for shown in rows])
    axes.set_ylim(len(rows) - 0.6, -0.85)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    return _svg(figure, name)


_COLUMNS = 3


def curve_charts(curves: Mapping[str, Sequence[Point]], name: str, title: str, xlabel: str, ylabel: str) -> str:
    """A small chart for each curve, three beside each other: a line through its points and a band of their intervals.

    All have the same height of the axis, each its own length. `name` is as in `distribution_chart`.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / _COLUMNS)
    figure = Figure(figsize=(_WIDTH, 0.8 + 1.35 * rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    grid = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False)
    for axes, (label, points) in zip(grid.flat, curves.items(), strict=False):
        x, y = [point.x for point in points], [point.y for point in points]
        low = [point.y if point.low is None else point.low for point in points]
        high = [point.y if point.high is None else point.high for point in points]
        axes.fill_between(x, low, high, color=PALETTE[5], alpha=0.45, linewidth=0)
        axes.plot(x, y, color=PALETTE[0], linewidth=1.4, marker="o" if len(points) == 1 else None, markersize=4)
        axes.set_title(_short(label), loc="left", fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4, integer=True)
        axes.locator_params(axis="y", nbins=4)
        axes.xaxis.set_major_formatter(short_number)
        axes.set_axisbelow(True)
        axes.grid(color=_GRID, linewidth=0.7)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    return _svg(figure, name)


@dataclass(frozen=True)
class LearningCurve:
    """Returns of one task by environment steps: of every training episode, of evaluations, and published ones.

    A published point's interval is the range of its seeds.
    """

    training: Sequence[Point]
    evaluated: Sequence[Point]
    published: Sequence[Point] = ()


def learning_charts(curves: Mapping[str, LearningCurve], name: str, title: str) -> str:
    """A chart for each task, three beside each other; `name` is as in `distribution_chart`.

    Training episodes are dots, evaluations a line, what is published squares with the range of the seeds.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / _COLUMNS)
    figure = Figure(figsize=(_WIDTH, 1.0 + 1.7 * rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    grid = figure.subplots(rows, min(_COLUMNS, len(curves)), sharey=True, squeeze=False)
    for axes, (label, curve) in zip(grid.flat, curves.items(), strict=False):
        axes.plot([p.x for p in curve.training], [p.y for p in curve.training], ".", color=PALETTE[5], markersize=4)
        axes.plot([p.x for p in curve.evaluated], [p.y for p in curve.evaluated], "-o", color=PALETTE[0], markersize=4)
        for point in curve.published:
            low, high = (point.y if bound is None else bound for bound in (point.low, point.high))
            axes.plot([point.x, point.x], [low, high], color="black", linewidth=1)
            axes.plot([point.x], [point.y], linestyle="none", **_PUBLISHED)
        axes.set_title(_short(label), loc="left", fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4, integer=True)
        axes.xaxis.set_major_formatter(short_number)
        axes.set_axisbelow(True)
        axes.grid(color=_GRID, linewidth=0.7)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return of an episode", fontsize=9)
    return _svg(figure, name)


_LINE_HEIGHT = 0.055
"""Of labels, in heights of the axes."""
_PUBLISHED: dict[str, Any] = {
    "marker": "s",
    "markersize": 7,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
}


def _look(index: int) -> dict[str, Any]:
    """Of the values of a kind: the first are filled dots, others hollow."""
    colour = PALETTE[index]
    return {
        "marker": ("o", "D", "^", "v")[index % 4],
        "markersize": 7 if index == 0 else 6,
        "markerfacecolor": colour if index == 0 else "white",
        "markeredgecolor": colour,
        "markeredgewidth": 1.4,
    }


def _short(label: str) -> str:
    """A label that leaves room for the chart."""
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure, axes


def _keys(axes: Axes, keys: Sequence[tuple[str, dict[str, Any]]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", label=text, **look) for text, look in keys]
    assert axes.figure is not None
    axes.figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)


def _svg(figure: Figure, name: str) -> str:
    """The chart as text, the same for the same figures; `name` makes its ids differ from those of others in a page."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    held = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False}):
        figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
    svg = held.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
