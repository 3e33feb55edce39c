"""Charts of studies as SVG text, to stand in a page or in files of their own.

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

from tdmpc2.reporting.plots import PALETTE

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
