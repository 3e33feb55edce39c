"""Plots for reports: learning curves and scores, drawn without a display and written whole or not at all.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; curves are labelled where
they end, so that no legend has to be looked up. matplotlib is imported when a plot is drawn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tdmpc2.errors import UserError
from tdmpc2.fileio import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#A79500")
"""Order in which series take colours; a ninth series starts again."""

FORMATS = (".png", ".svg", ".pdf")
_GREY = "#666666"
_DPI = 150


def learning_curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike[str],
    title: str,
    ylabel: str,
    hlines: Mapping[str, float] | None = None,
    xlabel: str = "updates",
) -> None:
    """One line per entry of `series`, each a sequence of (step, value); `hlines` are reference values.

    A value that is not finite leaves a gap. The file's ending (.png, .svg, .pdf) chooses the format.
    """
    if not any(points for points in series.values()):
        raise UserError(f"nothing to draw in {os.fspath(path)}: every series is empty.")
    figure, axes = _new_figure(path, 7.2, 4.2, title)
    labels: list[tuple[float, str, str]] = []
    for index, (label, points) in enumerate(series.items()):
        steps = [float(step) for step, _ in points]
        values = [value if math.isfinite(value) else math.nan for _, value in points]
        colour = PALETTE[index % len(PALETTE)]
        marker = "o" if len(points) <= 30 else None
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5)
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            labels.append((finite[-1], label, colour))
    for label, value in (hlines or {}).items():
        axes.axhline(value, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        labels.append((value, label, _GREY))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.02, y=0.08)
    axes.xaxis.set_major_formatter(short_number)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    _label_ends(axes, labels)
    _save(figure, path)


def score_bars(
    scores: Mapping[str, tuple[float, float | None, float | None]],
    path: str | os.PathLike[str],
    title: str,
    xlabel: str = "normalised score, 0 to 100",
) -> None:
    """One horizontal bar per entry of `scores`: (mean, low, high); low and high are an interval or None."""
    if not scores:
        raise UserError(f"nothing to draw in {os.fspath(path)}: no scores.")
    figure, axes = _new_figure(path, 7.2, 1.3 + 0.42 * len(scores), title)
    rows = range(len(scores))
    means = [mean for mean, _, _ in scores.values()]
    axes.barh(rows, [m if math.isfinite(m) else 0 for m in means], height=0.62, color=PALETTE[0])
    for row, (mean, low, high) in zip(rows, scores.values(), strict=True):
        end = mean if math.isfinite(mean) else 0.0
        text = f"{mean:.2f}"
        if low is not None and high is not None:
            axes.plot([low, high], [row, row], color="black", linewidth=1.4, solid_capstyle="butt")
            axes.plot([low, high], [row, row], color="black", linestyle="none", marker="|", markersize=7)
            end = max(end, high)
            text += f"  ({low:.2f} to {high:.2f})"
        axes.annotate(text, (end, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(list(rows), list(scores))
    axes.set_xlabel(xlabel)
    axes.margins(x=0.28, y=0.02)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    _plain_rows(axes)
    _save(figure, path)


def task_bars(
    scores: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    title: str,
    xlabel: str = "mean episode return, 0 to 1000",
    limit: float | None = 1000,
) -> None:
    """Bars grouped by task: `scores` maps each label to its score per task; a task may be missing in some.

    Tasks come in the order they first appear in. `limit` is the axis' end, None the widest bar's.
    """
    tasks = list(dict.fromkeys(task for values in scores.values() for task in values))
    if not tasks:
        raise UserError(f"nothing to draw in {os.fspath(path)}: no task has a score.")
    group = 0.8
    height = group / len(scores)
    inches = 1.5 + len(tasks) * (0.1 + 0.11 * max(len(scores), 2))
    figure, axes = _new_figure(path, 7.2, inches, title)
    for index, (label, values) in enumerate(scores.items()):
        colour = PALETTE[index % len(PALETTE)]
        present = [(row, values[task]) for row, task in enumerate(tasks) if task in values]
        rows = [row - group / 2 + (index + 0.5) * height for row, _ in present]
        widths = [value if math.isfinite(value) else 0.0 for _, value in present]
        axes.barh(rows, widths, height=height * 0.92, color=colour, label=label)
        for row, width, (_, value) in zip(rows, widths, present, strict=True):
            # The figure itself tells a score of 0 from a task that was not evaluated.
            axes.annotate(f"{value:.0f}", (width, row), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set_xlabel(xlabel)
    axes.set_xlim(0, limit)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    _plain_rows(axes)
    if len(scores) > 1:
        columns = min(len(scores), 3)
        figure.legend(
            loc="outside upper left", ncols=columns, frameon=False, fontsize=9, handlelength=1, handleheight=1
        )
    _save(figure, path)


Side = Literal["left", "right", "above", "below"]


@dataclass(frozen=True)
class SizedScore:
    """A point of `score_by_size`.

    Attributes:
        label: names the model.
        mib: size of its file in MiB.
        score: normalised score (0..100).
        interval: the score's 95% interval (low, high); None where none is known.
        measured: measured by this project (filled), or published (hollow).
        side: where the label stands.
    """

    label: str
    mib: float
    score: float
    interval: tuple[float, float] | None = None
    measured: bool = False
    side: Side = "right"


def score_by_size(points: Sequence[SizedScore], path: str | os.PathLike[str], title: str) -> None:
    """Scores over the size of files, with intervals: filled points were measured, hollow ones are published.

    Shape and filling carry the meaning, so the picture can be read in black and white and at half its size.
    """
    if not points:
        raise UserError(f"nothing to draw in {os.fspath(path)}: no scores.")
    figure, axes = _new_figure(path, 7.2, 4.4, title)
    for measured, marker, colour, words in (
        (False, "s", "black", "published"),
        (True, "o", PALETTE[0], "measured here, with 95% interval"),
    ):
        chosen = [point for point in points if point.measured is measured]
        for point in chosen:
            if point.interval is not None:
                axes.plot(
                    [point.mib] * 2, point.interval, color=colour, linewidth=2, marker="_", markersize=12, zorder=4
                )
        axes.plot(
            [point.mib for point in chosen],
            [point.score for point in chosen],
            linestyle="none",
            marker=marker,
            markersize=9 if measured else 7,
            markeredgewidth=1.6,
            markeredgecolor=colour,
            markerfacecolor=colour if measured else "white",
            zorder=4 if measured else 3,  # an interval is seen on a published point beneath it
            label=words,
        )
    for point in points:
        (x, y), across, along = _LABEL_PLACES[point.side]
        low, high = point.interval or (point.score, point.score)
        axes.annotate(
            f"{point.label} {point.score:.2f}",
            (point.mib, {"above": high, "below": low}.get(point.side, point.score)),
            (x, y),
            textcoords="offset points",
            ha=across,
            va=along,
            fontsize=10.5,
            fontweight="bold" if point.measured else "normal",
        )
    axes.set_xlabel("size of the file, MiB", fontsize=10.5)
    axes.set_ylabel("normalised score, 0 to 100", fontsize=10.5)
    axes.set_xlim(0, 1.35 * max(point.mib for point in points))
    axes.set_ylim(0, 1.15 * max(point.interval[1] if point.interval else point.score for point in points))
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.legend(loc="lower right", frameon=False, fontsize=10.5, handletextpad=0.3)
    _save(figure, path)


_LABEL_PLACES: Mapping[Side, tuple[tuple[float, float], str, str]] = {
    "left": ((-10, 0), "right", "center"),
    "right": ((10, 0), "left", "center"),
    "above": ((0, 9), "center", "bottom"),
    "below": ((0, -9), "center", "top"),
}


def _new_figure(path: str | os.PathLike[str], width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure of its own, not pyplot's, so that nothing is shown or kept. Size in inches."""
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(f"cannot draw {os.fspath(path)}: its ending must be one of {', '.join(FORMATS)}.")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure, axes


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the picture: texts as they are, dollar signs too, which else begin a formula.

    The same figures give the same SVG: it has no date, and names of its parts that are not random.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    kind = Path(path).suffix.lower().lstrip(".")
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with atomic_file(path) as file, rc_context({"svg.hashsalt": "tdmpc2", "text.parse_math": False}):
        figure.savefig(file, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)


def _plain_rows(axes: Axes) -> None:
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Writes (height, text, colour) right of the axes at that height, apart from each other."""
    low, high = axes.get_ylim()
    gap = 0.055  # of the axes' height, a line of the labels' text
    wanted = sorted((min(max((y - low) / (high - low), 0.0), 1.0), text, colour) for y, text, colour in labels)
    heights = _spread([height for height, _, _ in wanted], gap)
    for height, (_, text, colour) in zip(heights, wanted, strict=True):
        axes.annotate(
            text,
            (1.0, height),
            (6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending `heights` moved as little as a `gap` between neighbours needs: those that collide share a
    centre.
    """
    blocks: list[list[float]] = []  # [sum of wanted lowest positions, members]
    for height in heights:
        blocks.append([height, 1])
        while len(blocks) > 1:
            (low_sum, low_count), (sum_, count) = blocks[-2], blocks[-1]
            if low_sum / low_count + low_count * gap <= sum_ / count:
                break
            # As one block: each member's wish, taken back by its place in the block.
            blocks[-2:] = [[low_sum + sum_ - count * low_count * gap, low_count + count]]
    return [total / count + place * gap for total, count in blocks for place in range(int(count))]


def short_number(value: float, position: float = 0) -> str:
    """Axis figures as 0, 500, 20K, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
