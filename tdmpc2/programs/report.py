"""Writes a report of runs: the papers' tables and figures with this project's scores and intervals beside them.

    python scripts/report.py logs/quickstart/cpu [more folders] [--out results/report] [--frames]

It finds every run below the folders and writes report.md, report.html (one page that needs nothing else), report.json
and the charts. Runs that have not ended and files that cannot be read are named in it.

Exit status: 0 when written, 2 for bad input.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import imageio
import numpy as np

from tdmpc2.agent import load_agent
from tdmpc2.envs import EnvPool, episode_seed
from tdmpc2.errors import UserError
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.rollout import AgentController, Job
from tdmpc2.study.page import write_report
from tdmpc2.study.runs import Run, gather

_DECISIONS = 150
"""Of the prior, before the picture is taken."""


def frames_of(runs: Sequence[Run]) -> dict[str, str]:
    """A picture of each task by the run with the best final score, acted by its prior: PNG in base64, by caption.

    Raises:
        UserError: when no renderer works here, or no run has a final checkpoint.
    """
    scored = [(run.evaluations["final", True].score().value, run) for run in runs if ("final", True) in run.evaluations]
    if not scored:
        raise UserError("no run has ended with its evaluation, so there is no agent to show.")
    _, best = max(scored, key=lambda pair: pair[0])
    agent = load_agent(best.folder / "checkpoints" / "final.safetensors", device="cpu")
    frames = {}
    with EnvPool(agent.task_set, num_envs=1, num_workers=0, render=True) as pool:
        for task in agent.task_set.tasks:
            controller = AgentController(agent, 1, mpc=False, greedy=True)
            job = Job(task, 0, episode_seed(best.seed, task, 0))
            controller.start(0, job)
            obs = pool.reset([0], [task], [job.seed])
            for _ in range(_DECISIONS):
                obs = pool.step(controller.actions([0], obs), [0])[0]
            frames[f"{task}, decision {_DECISIONS} by the prior of {best.arm}, seed {best.seed}"] = _png(
                pool.render([0])[0]
            )
    return frames


def _png(frame: np.ndarray) -> str:
    held = io.BytesIO()
    imageio.imwrite(held, frame, format="png")
    return base64.b64encode(held.getvalue()).decode("ascii")


def main(arguments: list[str] | None = None) -> None:
    parser = ProgramParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders of runs, such as logs/quickstart/cpu")
    parser.add_argument("--out", type=Path, default=Path("results/report"), help="its folder (results/report)")
    parser.add_argument("--frames", action="store_true", help="with a picture of each task, where a renderer works")
    options = parser.parse_args(arguments)
    frames = None
    if options.frames:
        try:
            frames = frames_of(gather(options.folders).runs)
        except UserError as error:
            print(f"no pictures: {error}")
    page = write_report(options.folders, options.out, frames)
    print(f"{page}, with report.md, report.json and the charts beside it")
