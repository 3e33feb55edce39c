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
from typing import TYPE_CHECKING

from tdmpc2.reporting.plots import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
_GRID = "#E0E0E0"


@dataclass(frozen=True)
class Mark:
    """A value with its 95% interval (None for none); `published` is shown beside it."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    published: float | None = None


@dataclass(frozen=True)
class Point:
    """A point of a line."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


def interval_chart(marks: Sequence[Mark], name: str, title: str, xlabel: str, *, zero: bool = False) -> str:
    """A row for each mark: a filled dot with its interval, a hollow square for what is published.

    `zero` draws the line that a difference is to be seen against.
    """
    figure, axes = _figure(7.0, 1.2 + 0.32 * len(marks), title)
    rows = range(len(marks))
    for row, mark in zip(rows, marks, strict=True):
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.low, mark.high], [row, row], color=PALETTE[0], linewidth=2, marker="|", markersize=8)
        if mark.value is not None:
            axes.plot([mark.value], [row], linestyle="none", marker="o", markersize=7, color=PALETTE[0])
        if mark.published is not None:
            axes.plot(
                [mark.published],
                [row],
                linestyle="none",
                marker="s",
                markersize=7,
                markerfacecolor="white",
                markeredgecolor="black",
            )
        if mark.value is None and mark.published is None:
            axes.annotate("missing", (0.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    if zero:
        axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(list(rows), [mark.label for mark in marks])
    axes.set_ylim(len(marks) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    if any(mark.published is not None for mark in marks):
        _keys(axes, [("o", PALETTE[0], "this project, 95% interval"), ("s", "white", "published (MT30, full scale)")])
    return _svg(figure, name)


def line_chart(
    series: Mapping[str, Sequence[Point]], name: str, title: str, xlabel: str, ylabel: str, *, lines: bool = True
) -> str:
    """A line with markers for each series, and intervals as vertical bars; without `lines`, points alone."""
    figure, axes = _figure(7.0, 4.0, title)
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
            marker=None if many else _MARKERS[look],
            markersize=6,
            markerfacecolor="white" if index % 2 else PALETTE[look],
            label=label,
        )
        for point in shown:
            if point.low is not None and point.high is not None:
                axes.plot([point.x] * 2, [point.low, point.high], color=PALETTE[look], linewidth=1.2, marker="_")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.margins(x=0.04, y=0.1)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, handlelength=3)
    return _svg(figure, name)


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure, axes


def _keys(axes: Axes, keys: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="none", marker=marker, markerfacecolor=fill, markeredgecolor="black", label=text)
        for marker, fill, text in keys
    ]
    assert axes.figure is not None
    axes.figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=8.5)


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
