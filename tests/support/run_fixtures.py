"""What the tests of settings, runs, rollouts and programs share: a small real store and runs of a tiny model."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tdmpc2.data.importing import open_or_create
from tdmpc2.envs import EnvPool
from tdmpc2.model import WorldModel, model_dims
from tdmpc2.rollout import RandomController
from tdmpc2.rollout.collecting import collect
from tdmpc2.settings.convert import teacher_of, train_settings
from tdmpc2.settings.entry import CONFIG_DIR
from tdmpc2.settings.schema import register_schemas
from tdmpc2.tasks import TaskSet, task_set
from tdmpc2.training import TrainResult, TrainSettings, train

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
TASKS = ("cartpole-swingup", "pendulum-spin")
DUO = task_set("duo", TASKS)
DUO_KEYS = ("task.name=duo", f"task.tasks=[{','.join(TASKS)}]")
TINY_MODEL = ("enc_dim=32", "mlp_dim=32", "latent_dim=32")
TINY_PLANNER = ("iterations=1", "num_samples=8", "num_elites=4", "num_pi_trajs=2")
TINY = (*DUO_KEYS, *TINY_MODEL, *TINY_PLANNER, "batch_size=8", "num_workers=0")

_folder = tempfile.TemporaryDirectory(prefix="tdmpc2-tests-")


@functools.cache
def store_path() -> Path:
    """A store of two oscillating episodes of each of `TASKS`, run in the real simulator once."""
    path = Path(_folder.name) / "store"
    store = open_or_create(path, DUO)
    collect(
        store,
        TASKS,
        2,
        lambda slots: RandomController(DUO, slots, oscillate=True, noise=0.1),
        lambda jobs: EnvPool(DUO, num_envs=jobs, num_workers=0),
        seed=1,
        source="tests",
    )
    return path


def composed(program: str, *overrides: str) -> DictConfig:
    """The configuration that a program gets from a command line."""
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        return compose(config_name=program, overrides=list(overrides))


def tiny_settings(run_dir: Path, *overrides: str) -> TrainSettings:
    return train_settings(tiny_config(*overrides), run_dir)


def tiny_config(*overrides: str) -> DictConfig:
    return composed("train", *TINY, f"data_dir={store_path()}", "logging.console=false", "device=cpu", *overrides)


def tiny_run(run_dir: Path, *overrides: str) -> TrainResult:
    """A run in this process, set up as the program does it."""
    config = tiny_config(*overrides)
    settings = train_settings(config, run_dir)
    return train(settings, teacher_of(config, settings.task_set, settings.device))


def tiny_model(tasks: TaskSet = DUO, seed: int = 0) -> WorldModel:
    """A published 1M model with random weights, the last layers' too, so that its rewards and values differ."""
    model = WorldModel(
        model_dims(1, tasks.obs_dim, tasks.action_dim, len(tasks)),
        tasks.action_masks() if tasks.multitask else None,
    )
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    for parameter in (*model.reward_head.parameters(), *model.q_heads.parameters()):
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model.eval()


def environment(**changes: str) -> dict[str, str]:
    """This process's, without the paths that would find the package for a program."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HYDRA_FULL_ERROR")}
    return {**kept, **changes}


def run_program(script: str, *arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """`python <root>/<script> …`, as a user starts it from any folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, by relative path."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
