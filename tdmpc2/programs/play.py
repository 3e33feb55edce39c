"""Shows a checkpoint in the running simulator, as a page in the browser.

python scripts/play.py checkpoint=student.pt task=cup-spin
"""

from __future__ import annotations

import contextlib
import os
import sys
import webbrowser

from omegaconf import DictConfig

from tdmpc2.agent import load_agent, resolve_device
from tdmpc2.checkpointing import Checkpoint, read_checkpoint
from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import EvaluationSettings
from tdmpc2.places import CONFIG_DIR
from tdmpc2.play import PageServer, Planning, Stage
from tdmpc2.settings.convert import chosen_task_set, from_keys, planner_settings, planning_of, required
from tdmpc2.settings.entry import composed, hydra_entry, set_matmul_precision
from tdmpc2.settings.schema import PlayKeys
from tdmpc2.tasks import TASK_SETS, TaskSet, task_set

PRIOR, AS_GIVEN = "prior alone", "as given"


@hydra_entry("play")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    keys = from_keys(PlayKeys, config)
    acting = from_keys(EvaluationSettings, config)
    checkpoint = required(config, "checkpoint")
    device = resolve_device(config.device)
    held = read_checkpoint(checkpoint)
    tasks, first = _tasks(held, chosen_task_set(config))
    agent = load_agent(checkpoint, tasks, device, **planning_of(config))
    if acting.mpc:
        agent.check_plans()
    offered = agent.task_set.chosen(keys.tasks)
    if first is None:
        first = offered[0]
    elif first not in offered:
        raise UserError(f"task={first} is not among tasks=[{','.join(offered)}]; leave one of the keys out.")
    plannings, chosen = _plannings(config) if held.plans else ([], PRIOR)
    plannings.append(Planning(PRIOR, None, acting.greedy))
    if not acting.mpc:
        chosen = PRIOR
    stage = Stage(agent, offered, plannings, task=first, planning=chosen, seed=acting.seed)
    with contextlib.closing(stage), PageServer(stage, keys.port) as server:
        print(f"{checkpoint}: {first}, {chosen}; the page is {server.address} and Ctrl-C ends it", flush=True)
        if keys.browser and _has_display():
            webbrowser.open(server.address)
        with contextlib.suppress(KeyboardInterrupt):
            stage.run()
    print("ended")


def _tasks(held: Checkpoint, given: TaskSet | None) -> tuple[TaskSet | None, str | None]:
    """The task set to load the checkpoint with, None for its own, and the task to begin with, None for the first.

    A single task's name means that one of a checkpoint of several. Released files do not name theirs: then it is the
    known task set of as many tasks.
    """
    if given is None or given.multitask or not held.dims.num_tasks:
        return given, None
    task = given.tasks[0]
    if held.metadata is not None:
        if task not in held.metadata.tasks:
            raise UserError(f"{held.path}: knows no task '{task}'; its tasks are {', '.join(held.metadata.tasks)}.")
        return None, task
    for name, tasks in TASK_SETS.items():
        if len(tasks) == held.dims.num_tasks and task in tasks:
            return task_set(name), task
    raise UserError(f"{held.path}: does not name its tasks: give task=… for all of them, and tasks=[{task}].")


def _plannings(config: DictConfig) -> tuple[list[Planning], str]:
    """The choices of `planner`, `default` first, and the name of the one that the configuration comes to.

    Where its numbers are none of theirs, they are one more choice.
    """
    names = sorted((path.stem for path in (CONFIG_DIR / "planner").glob("*.yaml")), key=lambda n: (n != "default", n))
    found = []
    for name in names:
        of_name = composed("play", [f"planner={name}"])
        found.append(Planning(name, planner_settings(of_name), of_name.greedy))
    given = Planning(AS_GIVEN, planner_settings(config), config.greedy)
    for each in found:
        if (each.settings, each.greedy) == (given.settings, given.greedy):
            return found, each.name
    return [given, *found], given.name


def _has_display() -> bool:
    """Whether a browser would open in a window; one in the terminal would take the program's place."""
    return sys.platform in ("win32", "darwin") or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
