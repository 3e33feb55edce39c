"""The page beside an evaluation's films: each task's film, with its return and the task's score."""

from __future__ import annotations

from pathlib import Path

from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import EvaluationResult
from tdmpc2.evaluation.scores import RETURN_TO_SCORE, task_statistics
from tdmpc2.fileio import atomic_write_text
from tdmpc2.reporting.report import Report

PAGE_NAME = "index.html"


def film_name(task: str) -> str:
    """The file of a task's film, in the folder of films."""
    return f"{task}.mp4"


def save_film_page(result: EvaluationResult, folder: Path) -> Path:
    """Writes `index.html` into a folder of films, whole or not at all, and returns its path.

    The page refers to the films beside it and to nothing else.

    Raises:
        UserError: where a task's film is not there, or the page cannot be written.
    """
    missing = [task for task in result.tasks if not (folder / film_name(task)).is_file()]
    if missing:
        raise UserError(f"{folder / film_name(missing[0])}: no such film; evaluate with save_video=true.")
    returns = {episode.task: episode.episode_return for episode in result.episodes if episode.episode == 0}
    report = Report(result.label)
    score = result.score()
    interval = "" if score.interval is None else f" (95%: {score.interval.low:.1f} to {score.interval.high:.1f})"
    episodes = len(result.episodes)
    report.paragraph(
        f"Score {score.value:.1f} of 100{interval}: {len(result.tasks)} task{'s' * (len(result.tasks) > 1)} of "
        f"'{result.task_set}', {episodes} episode{'s' * (episodes > 1)}. Each film is a task's first episode, in real "
        "time; a task's score is a tenth of its episodes' mean return."
    )
    statistics = task_statistics(result.returns())
    report.films(
        [
            (
                film_name(task),
                f"{task}: return {returns[task]:.0f}; score {of_task.mean * RETURN_TO_SCORE:.1f} "
                f"({of_task.episodes} episode{'s' * (of_task.episodes > 1)})",
            )
            for task, of_task in statistics.items()
        ]
    )
    path = folder / PAGE_NAME
    atomic_write_text(path, report.html())
    return path
