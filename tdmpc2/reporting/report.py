"""A report of a few agents: Markdown for people and JSON for programs, written beside its plots."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc2.fileio import atomic_write_text
from tdmpc2.reporting.tables import Style, format_table

MARKDOWN_NAME = "report.md"
JSON_NAME = "report.json"


class Report:
    """The parts of a report in their order. `write` makes files of them; until then nothing is on the disk."""

    def __init__(self, title: str) -> None:
        self._parts = [f"# {title}"]

    def heading(self, text: str) -> None:
        self._parts.append(f"## {text}")

    def paragraph(self, text: str) -> None:
        """Any Markdown that stands for itself: sentences, or a table that is made already."""
        self._parts.append(text)

    def plot(self, name: str, title: str) -> None:
        """Shows the picture file `name` of the report's folder."""
        self._parts.append(f"![{title}]({name})")

    def markdown(self) -> str:
        return "\n\n".join(self._parts) + "\n"

    def write(self, folder: str | os.PathLike[str], figures: Mapping[str, Any]) -> None:
        """Writes `report.md`, and `report.json` with all `figures`, each whole or not at all.

        Raises:
            ValueError: for a figure that is not finite, which JSON has no word for; write None.
            UserError: when a file cannot be written.
        """
        content = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        atomic_write_text(Path(folder) / MARKDOWN_NAME, self.markdown())
        atomic_write_text(Path(folder) / JSON_NAME, content)


@dataclass(frozen=True)
class AgentScores:
    """One agent's row of a table and bar of a plot.

    Attributes:
        label: names the agent.
        facts: cells about the agent itself (its size, …), in the order of the table's columns.
        returns: mean episode return (0..1000) by task.
        score: normalised score (0..100).
        interval: the score's 95% interval (low, high); None where there is none.
    """

    label: str
    facts: Sequence[str]
    returns: Mapping[str, float]
    score: float
    interval: tuple[float, float] | None

    @property
    def bar(self) -> tuple[float, float | None, float | None]:
        """The score with its interval, as `score_bars` draws it."""
        return (self.score, *(self.interval or (None, None)))

    def to_json(self) -> dict[str, Any]:
        """The score and its interval as plain data."""
        interval = None if self.interval is None else {"low": self.interval[0], "high": self.interval[1]}
        return {"value": self.score, "interval": interval}


def scores_table(agents: Sequence[AgentScores], facts: Sequence[str], style: Style = "plain") -> str:
    """A row an agent: its facts under the headers `facts`, mean returns by task, the score and its interval.

    Raises ValueError for agents with other tasks or facts than the first one's, or none.
    """
    if not agents:
        raise ValueError("no agents to show")
    tasks = list(agents[0].returns)
    rows = []
    for agent in agents:
        if list(agent.returns) != tasks:
            raise ValueError(f"{agent.label} has tasks {list(agent.returns)}, {agents[0].label} has {tasks}")
        span = "-" if agent.interval is None else f"{agent.interval[0]:.1f} to {agent.interval[1]:.1f}"
        means = [f"{mean:.0f}" for mean in agent.returns.values()]
        rows.append([agent.label, *agent.facts, *means, f"{agent.score:.1f}", span])
    return format_table(["agent", *facts, *tasks, "score", "95% interval"], rows, style=style)
