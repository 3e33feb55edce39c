"""The picture of scores by size, drawn without a display and written whole or not at all.

Colours are Okabe and Ito's, which people with any colour vision can tell apart. matplotlib is imported when it is
drawn.
"""

from __future__ import annotations

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
_DPI = 150

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


def short_number(value: float, position: float = 0) -> str:
    """Axis figures as 0, 500, 20K, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
