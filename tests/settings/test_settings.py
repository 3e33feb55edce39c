"""Configuration: every choice composes, every mistake is named, and the packages get what the keys say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from run_fixtures import DUO_KEYS, composed

from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.evaluation.runner import EvaluationSettings
from tdmpc2.keys import keys_in
from tdmpc2.losses import LossWeights
from tdmpc2.model import model_dims
from tdmpc2.objectives import OBJECTIVES, RewardDistillation
from tdmpc2.planner import PlannerSettings
from tdmpc2.reporting.metrics import LoggingSettings
from tdmpc2.settings.checks import one_line
from tdmpc2.settings.convert import (
    chosen_task_set,
    evaluation_settings,
    model_dims_of,
    planner_settings,
    planning_of,
    required,
    teacher_of,
    train_settings,
)
from tdmpc2.settings.entry import CONFIG_DIR, set_matmul_precision
from tdmpc2.settings.schema import PlannerConfig
from tdmpc2.tasks import MINI, QUICKSTART, known_tasks, task_set
from tdmpc2.training import OptimiserSettings, TrainSettings

PROGRAMS = ("evaluate", "quantize", "collect")


def choices(group: str) -> list[str]:
    folder = CONFIG_DIR / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def settings_of(*overrides: str) -> TrainSettings:
    return train_settings(composed("train", "device=cpu", *overrides), Path("run"))


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in ("model", "teacher", "planner", "logging", "scale", "experiment")
        for name in choices(group)
    ],
)
def test_every_choice_of_train_composes_and_converts(choice: str) -> None:
    labels = ("teacher.labels=folder",) if choice == "teacher=labels" else ()
    config = composed("train", "device=cpu", choice, *labels)
    train_settings(config, Path("run"))
    if choice.startswith("teacher=") and choice.endswith("M"):
        size = int(choice.removeprefix("teacher=").removesuffix("M"))
        assert model_dims_of(config.teacher, task_set("mt30"), config).enc_dim == model_dims(size, 24, 6, 30).enc_dim
        assert config.model_size == 1


@pytest.mark.parametrize("program", ("train", *PROGRAMS))
def test_every_task_and_planner_composes_for_every_program(program: str) -> None:
    for planner in choices("planner"):
        planner_settings(composed(program, f"planner={planner}"))
    for task in choices("task"):
        tasks = chosen_task_set(composed(program, f"task={task}"))
        assert (tasks is None) == (task == "own")
    for task in ("walker-walk", "pendulum-spin"):
        tasks = chosen_task_set(composed(program, f"task={task}"))
        assert tasks is not None and tasks.tasks == (task,)


def test_every_single_task_is_a_choice() -> None:
    with pytest.raises(HydraException) as caught:
        composed("train", "task=nope")
    for task in known_tasks():
        assert task in one_line(caught.value)


def test_defaults_are_the_papers() -> None:
    s = settings_of()
    assert s.task_set == task_set("mt30") and s.dims == model_dims(1, 24, 6, 30)
    assert (s.steps, s.batch_size, s.horizon, s.seed, s.save_freq) == (200_000, 256, 3, 1, None)
    assert s.optimiser == OptimiserSettings() and s.planner == PlannerSettings() and s.logging == LoggingSettings()
    assert s.weights == LossWeights() and s.objectives == () and s.identity()["d_coef"] == 0, "no teacher"
    assert s.eval_freq == 0 and s.teacher_name == "none" and s.checkpoint is None
    config = composed("evaluate", "checkpoint=x.pt")
    assert evaluation_settings(config, None) == EvaluationSettings(episodes=10)
    assert chosen_task_set(config) is None
    assert planner_settings(config) == PlannerSettings()


def test_planner_keys_are_those_of_the_planner() -> None:
    keys = {f.name: f.default for f in fields(PlannerConfig)}
    assert keys.pop("greedy") is False  # of acting, not of planning
    assert keys == {f.name: f.default for f in fields(PlannerSettings)}


def test_greedy_reaches_every_program_that_acts() -> None:
    assert settings_of("greedy=true").evaluation.greedy and not settings_of().evaluation.greedy
    assert composed("collect", "greedy=true").greedy
    best = composed("evaluate", "checkpoint=x.pt", "planner=best")
    assert evaluation_settings(best, None).greedy


def test_a_run_s_evaluations_have_the_pool_that_is_asked_for() -> None:
    evaluation = settings_of("num_envs=3", "num_workers=2", "seed=4").evaluation
    assert (evaluation.num_envs, evaluation.num_workers, evaluation.seed) == (3, 2, 4)
    assert settings_of().evaluation == EvaluationSettings(episodes=1)
    with pytest.raises(UserError, match="num_envs must be at least 1, not 0"):
        settings_of("num_envs=0")


@pytest.mark.parametrize("program", PROGRAMS)
def test_ways_to_plan_reach_the_planner(program: str) -> None:
    given = composed(program, "planner=fast", "precision=bfloat16", "compile=true", "cudagraphs=true")
    fast = planner_settings(composed("evaluate", "planner=fast"))
    assert planning_of(given) == {"planner": fast, "precision": "bfloat16", "compile": True, "cudagraphs": True}
    with pytest.raises(UserError, match="precision=int3 is unknown; choose one of float32, float16, bfloat16"):
        planning_of(composed(program, "precision=int3"))


def test_distillation_weight_applies_with_a_teacher_only() -> None:
    assert settings_of("d_coef=0.6").objectives == ()
    (reward,) = settings_of("d_coef=0.6", "teacher=317M").objectives
    assert isinstance(reward, RewardDistillation) and reward.coef == 0.6
    assert settings_of("d_coef=0", "teacher=317M").objectives == ()
    with pytest.raises(UserError, match=r"d_value=0\.1 needs a teacher: name one, such as teacher=317M"):
        settings_of("d_value=0.1")


def test_every_objective_has_its_coefficient_s_key() -> None:
    for kind in OBJECTIVES:
        (name,) = (held.name for declared, held in keys_in(kind) if declared.name == "coef")
        s = settings_of("teacher=317M", "d_coef=0", f"{name}=0.3")
        assert [type(objective) for objective in s.objectives] == [kind] and s.identity()[name] == 0.3
    s = settings_of("teacher=5M", "d_latent_pca=0.1", "latent_side=student", "pca_batches=3")
    assert [objective.name for objective in s.objectives] == ["distillation", "d_latent_pca"]
    assert s.objectives[1].fit_batches == 3 and s.identity()["latent_side"] == "student"


def test_numbers_with_underscores() -> None:
    s = settings_of("steps=200_000", "save_freq=40_000", "batch_size=1_024", "lr=1e-3")
    assert (s.steps, s.save_freq, s.batch_size, s.optimiser.lr) == (200_000, 40_000, 1024, 1e-3)


def test_single_dimensions_replace_those_of_the_size() -> None:
    dims = settings_of(
        "model_size=5", "latent_dim=64", "num_q=3", "simnorm_dim=4", "dropout=0.1", "log_std_min=-5"
    ).dims
    table = model_dims(5, 24, 6, 30)
    assert (dims.latent_dim, dims.num_q, dims.simnorm_dim, dims.dropout, dims.log_std_min) == (64, 3, 4, 0.1, -5)
    assert (dims.enc_dim, dims.mlp_dim, dims.task_dim) == (table.enc_dim, table.mlp_dim, table.task_dim)
    teacher = composed("train", "teacher=5M", "teacher.num_q=3", "latent_dim=64")
    assert model_dims_of(teacher.teacher, task_set("mt30"), teacher).num_q == 3
    assert model_dims_of(teacher.teacher, task_set("mt30"), teacher).latent_dim == 512, "the student's key is its own"


def test_a_single_task_has_no_embedding() -> None:
    dims = settings_of("task=walker-walk", "task_dim=32").dims
    assert (dims.num_tasks, dims.task_dim, dims.obs_dim, dims.action_dim) == (0, 0, 24, 6)


def test_own_task_sets() -> None:
    assert settings_of("task=quickstart").task_set.tasks == QUICKSTART
    mini = settings_of("task=mini").task_set
    assert mini.tasks == MINI and mini.obs_dim < 24 and mini.action_dim < 6
    s = settings_of(*DUO_KEYS)
    assert s.task_set.name == "duo" and s.dims.num_tasks == 2 and s.dims.obs_dim == 5


def test_evaluation_keys() -> None:
    config = composed(
        "evaluate", "checkpoint=x.pt", "task=mt30", "tasks=[cup-catch,fish-swim]", "mpc=false", "greedy=true",
        "eval_episodes=3", "seed=7", "num_envs=2", "num_workers=0",
    )  # fmt: skip
    assert evaluation_settings(config, Path("v")) == EvaluationSettings(
        3, ("cup-catch", "fish-swim"), 7, mpc=False, greedy=True, num_envs=2, num_workers=0, video_dir=Path("v")
    )


@pytest.mark.parametrize(
    ("name", "exp_name", "d_coef", "steps", "teacher", "batch_size"),
    [
        ("paper_best", "paper_best", 0.45, 1_000_000, "317M", 256),
        ("table1/scratch", "full/scratch", 0.0, 200_000, "none", 256),
        ("table1/reward_0.25", "full/reward_0.25", 0.25, 200_000, "317M", 256),
        ("table2/scratch_1024_337k", "full/scratch_large_batch_middle", 0.0, 337_000, "none", 1024),
        ("table3/small_teacher", "full/reward_0.40_small_teacher", 0.4, 200_000, "48M", 256),
        ("figure3/distilled_long", "full/reward_0.45_long", 0.45, 1_000_000, "317M", 256),
        ("controls/dataset_0.40", "full/dataset_0.40", 0.4, 200_000, "dataset", 256),
    ],
)
def test_experiments(name: str, exp_name: str, d_coef: float, steps: int, teacher: str, batch_size: int) -> None:
    s = settings_of("task=quickstart", "model=5M", f"experiment={name}")
    assert s.task_set.tasks == QUICKSTART and s.dims.latent_dim == 512, "the command line beats the experiment"
    s = settings_of(f"experiment={name}")
    assert s.task_set.name == "mt30" and s.dims == model_dims(1, 24, 6, 30)
    assert (s.identity()["d_coef"], s.steps, s.teacher_name, s.batch_size) == (d_coef, steps, teacher, batch_size)
    assert s.config["exp_name"] == exp_name
    beaten = settings_of("steps=10", "teacher=19M", "d_coef=0.2", "exp_name=mine", f"experiment={name}")
    assert (beaten.steps, beaten.teacher_name, beaten.identity()["d_coef"]) == (10, "19M", 0.2)
    assert beaten.config["exp_name"] == "mine"


def test_released_19m_teacher_of_mt30_has_its_own_latent() -> None:
    config = composed("train", "teacher=19M")
    assert model_dims_of(config.teacher, task_set("mt30"), config).latent_dim == 512
    assert settings_of("model=19M").dims.latent_dim == 768
    assert settings_of("model=19M_mt30").dims.latent_dim == 512


@pytest.mark.parametrize(
    ("program", "wrong", "named"),
    [
        ("train", "d_coef=abc", ("d_coef", "abc", "Float")),
        ("train", "batch_size=1.5", ("batch_size", "1.5", "Integer")),
        ("train", "batchsize=8", ("batchsize",)),
        ("train", "task.nmae=mt30", ("task.nmae",)),
        ("train", "teacher.foo=1", ("teacher.foo",)),
        ("train", "logging.console=perhaps", ("logging.console", "perhaps")),
        ("train", "task=nope", ("task/nope", "mt30", "walker-walk")),
        ("train", "teacher=7M", ("teacher/7M", "317M")),
        ("train", "experiment=nix", ("experiment/nix", "paper_best")),
        ("train", "steps", ("steps",)),
        ("evaluate", "eval_episodes=many", ("eval_episodes", "many")),
        ("evaluate", "eval_episode=1", ("eval_episode",)),
        ("evaluate", "d_coef=0.4", ("d_coef",)),
        ("collect", "episodes=x", ("episodes", "x")),
        ("quantize", "scheem=fp16", ("scheem",)),
    ],
)
def test_wrong_keys_types_and_choices_are_named_in_one_line(program: str, wrong: str, named: tuple[str, ...]) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        composed(program, wrong)
    line = one_line(caught.value)
    assert "\n" not in line and "object_type" not in line and "+" not in line
    for part in named:
        assert part in line


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("batch_size=0", "batch_size"),
        ("steps=0", "steps"),
        ("horizon=0", "horizon"),
        ("log_freq=0", "log_freq"),
        ("state_freq=0", "state_freq"),
        ("save_freq=0", "save_freq"),
        ("eval_freq=-1", "eval_freq"),
        ("eval_episodes=0", "eval_episodes"),
        ("model_size=7", "model_size=7"),
        ("model_size=null", "model_size"),
        ("latent_dim=30", "latent_dim"),
        ("num_q=1", "num_q"),
        ("d_coef=-1", "d_coef"),
        ("lr=0", "lr"),
        ("tau=2", "tau"),
        ("num_elites=1000", "num_elites"),
        ("num_pi_trajs=-1", "num_pi_trajs"),
        ("temperature=0", "temperature"),
        ("min_std=3", "min_std"),
        ("task.tasks=[]", "mt30"),
        ("task.tasks=[walker-fly]", "walker-fly"),
        ("task=own", "task=own"),
        ("device=tpu0", "tpu0"),
        ("precision=float16", "precision=float16 is unknown for training; choose float32 or bfloat16"),
        ("logging.wandb_mode=sometimes", "wandb_mode"),
        ("resume=maybe", "resume=maybe"),
    ],
)
def test_values_out_of_range_are_named(wrong: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        train_settings(composed("train", wrong), Path("run"))


def test_a_wrong_value_in_a_file_names_its_key(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nbatch_size: many\n")
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        composed("train", f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert "batch_size" in one_line(caught.value) and "many" in one_line(caught.value)


def test_required_keys_and_precision_are_named() -> None:
    with pytest.raises(UserError, match="checkpoint is not set"):
        required(composed("evaluate"), "checkpoint")
    with pytest.raises(UserError, match="data_dir is not set"):
        required(composed("collect"), "data_dir")
    with pytest.raises(UserError, match="matmul_precision=low"):
        set_matmul_precision("low")


def test_a_teacher_needs_its_weights() -> None:
    config = composed("train", "teacher=317M")
    with pytest.raises(UserError, match=r"teacher=317M .*teacher\.checkpoint"):
        teacher_of(config, task_set("mt30"), torch.device("cpu"))
    assert teacher_of(composed("train"), task_set("mt30"), torch.device("cpu")) is None
    with pytest.raises(CheckpointError, match=r"nowhere\.pt"):
        teacher_of(
            composed("train", "teacher=1M", "teacher.checkpoint=nowhere.pt"), task_set("mt30"), torch.device("cpu")
        )


def test_a_random_teacher_has_the_size_named() -> None:
    config = composed("train", "task=quickstart", "teacher=5M", "teacher.random_weights=true", "teacher.mlp_dim=48")
    teacher = teacher_of(config, task_set("quickstart"), torch.device("cpu"))
    assert teacher is not None
    assert (teacher.dims.latent_dim, teacher.dims.mlp_dim, teacher.dims.num_tasks) == (512, 48, 3)
    rewards = teacher.rewards(torch.rand(8, 8), torch.rand(8, 2), torch.zeros(8, dtype=torch.int64))
    assert rewards.shape == (8, 1) and rewards.std() > 0
