"""Every key is written once, with its unit, default, source and check, and adding one touches one file."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from run_fixtures import ROOT, composed, environment

from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import EvaluationSettings
from tdmpc2.keys import THIS_PROJECT, Key, check_keys, key, key_of, keys_in
from tdmpc2.losses import LossWeights
from tdmpc2.model import ModelDims
from tdmpc2.planner import PlannerSettings
from tdmpc2.ranges import OneOf, Share, Whole, Within
from tdmpc2.reporting.metrics import LoggingSettings
from tdmpc2.settings.convert import from_keys
from tdmpc2.settings.entry import CONFIG_DIR
from tdmpc2.settings.keys import key_rows
from tdmpc2.settings.schema import NOT_IN_NAMES, SCHEMAS, TEXT_KEYS, derived, schema_keys
from tdmpc2.training import OptimiserSettings, TrainSettings

PLANNING = {f.name for f in fields(PlannerSettings)} | {"greedy", "device", "matmul_precision"}
WAYS_TO_PLAN = {"precision", "compile", "cudagraphs"}
POOL = {"seed", "num_envs", "num_workers"}


def names_in(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for name in map(str, config):
        node = config._get_node(name)
        found += names_in(node, f"{prefix}{name}.") if isinstance(node, DictConfig) else [f"{prefix}{name}"]
    return found


def definitions(program: str) -> dict[str, Key]:
    return {name: found.definition for name, _, found in schema_keys(SCHEMAS[program])}


# -- the list of all keys --------------------------------------------------------------------------------------------


def test_the_list_holds_every_key_of_every_program_and_all_of_it() -> None:
    rows = list(key_rows())
    for program in SCHEMAS:
        config = composed(program)
        listed = {row.name: row for row in rows if row.program == program}
        assert list(listed) == names_in(config)
        for name, row in listed.items():
            required = name in OmegaConf.missing_keys(config)
            assert required == (row.default == "required")
            if not required:
                value, said = OmegaConf.select(config, name), row.default
                assert said == value if isinstance(value, str) else yaml.safe_load(said) == value
    for row in rows:
        for said in (row.type, row.unit, row.default, row.source, row.text):
            assert said.strip() == said and said and "\n" not in said, row
    assert len(rows) > 150 and {row.program for row in rows} == set(SCHEMAS)


def test_rows_say_what_a_reader_needs() -> None:
    rows = {(row.program, row.name): row for row in key_rows()}
    row = rows["train", "save_freq"]
    assert (row.type, row.unit, row.default) == ("whole number or null", "updates", "null")
    assert row.range == "1 to 1,000,000,000,000" and "figure 3" in row.source
    assert rows["train", "d_coef"].default == "0.4" and "table 1" in rows["train", "d_coef"].source
    assert rows["train", "model_size"].default == "1", "what the default choice of a group says"
    assert rows["train", "rho"].range == "(0, 1]" and rows["train", "rho"].default == "0.5"
    assert rows["evaluate", "checkpoint"].default == "required"
    assert rows["evaluate", "tasks"].type == "list of text or null"
    assert rows["quantize", "precision"].default == "auto" and "auto" in rows["quantize", "precision"].range
    assert rows["collect", "behaviour"].range == "oscillate, uniform, planner, prior"
    assert (rows["train", "eval_episodes"].default, rows["evaluate", "eval_episodes"].default) == ("1", "10")
    for name in WAYS_TO_PLAN:
        assert "evaluations of the run plan" in rows["train", name].text


# -- written once ----------------------------------------------------------------------------------------------------


def test_a_key_of_several_programs_is_one_definition() -> None:
    """But for those that mean something else: slices or transitions, what is read first."""
    homes: dict[str, set[int]] = defaultdict(set)
    for program in SCHEMAS:
        for name, found in definitions(program).items():
            homes[name].add(id(found))
    several = {name: len(found) for name, found in homes.items() if len(found) > 1}
    assert several == {"batch_size": 2, "checkpoint": 3}


@pytest.mark.parametrize("settings", [PlannerSettings, LossWeights, OptimiserSettings, EvaluationSettings])
def test_whole_settings_are_keys(settings: Any) -> None:
    program = "evaluate" if settings is EvaluationSettings else "train"
    homes = {id(found) for found in definitions(program).values()}
    left = {f.name for f in fields(settings)} - {f.name for f, found in keys_in(settings)}
    assert left <= {"video_dir"}
    assert all(id(found.definition) in homes for _, found in keys_in(settings))


def test_settings_of_runs_and_models_are_keys_or_derived() -> None:
    homes = {id(found) for found in definitions("train").values()}
    for settings, not_set in ((TrainSettings, set()), (ModelDims, {"obs_dim", "action_dim", "num_tasks"})):
        assert {found.name for _, found in keys_in(settings) if id(found.definition) not in homes} == not_set
    logging = {id(found.definition) for _, found in keys_in(LoggingSettings)}
    assert logging == {id(d) for name, d in definitions("train").items() if name.startswith("logging.")}


def test_programs_that_plan_share_their_keys_and_so_do_those_that_run_environments() -> None:
    planners, pools = ("evaluate", "quantize", "collect"), ("train", "evaluate", "quantize", "collect")
    for programs, names in ((planners, PLANNING | WAYS_TO_PLAN), (pools, POOL | PLANNING)):
        for name in names:
            assert len({id(definitions(program)[name]) for program in programs}) == 1, name
            defaults = {program: OmegaConf.select(composed(program), name) for program in programs}
            defaults.pop("quantize") if name == "precision" else None
            assert len(set(defaults.values())) == 1, name


def test_names_of_runs_and_paths_follow_from_the_keys() -> None:
    assert {"num_envs", "num_workers", "data_dir", "logging", "logging.wandb", "task.tasks", "resume"} <= {
        *NOT_IN_NAMES
    }
    assert not {"lr", "seed", "steps", "precision", "teacher.precision"} & {*NOT_IN_NAMES}
    assert {
        *("checkpoint", "teacher.checkpoint", "teacher.labels", "data_dir", "output", "reference"),
        *("save_replay", "replay_from", "imitate_labels", "labels"),
        *("scale.large_checkpoint", "scale.small_checkpoint", "calibrate"),
        *("hydra.run.dir", "hydra.sweep.dir", "exp_name", "label", "task.name"),
    } == TEXT_KEYS


@pytest.mark.parametrize("group", ["planner", "experiment", "model", "logging"])
def test_presets_name_only_what_they_change(group: str) -> None:
    plain = OmegaConf.structured(SCHEMAS["train"])
    below = f"{group}." if group == "logging" else ""
    for path in (CONFIG_DIR / group).rglob("*.yaml"):
        for name, value in (yaml.safe_load(path.read_text()) or {}).items():
            if name != "defaults":
                assert OmegaConf.select(plain, f"{below}{name}") != value, f"{path.name}: {name}"


# -- adding a key ----------------------------------------------------------------------------------------------------

_NEW_KEY = """
    smooth_coef: float = key(0.25, "weight of smoothness", unit="factor", source="this project", check=_COEFFICIENT)

    def __post_init__"""
_USED = """
from pathlib import Path
import sys, run_fixtures
import tdmpc2
from tdmpc2.errors import UserError
from tdmpc2.settings.convert import train_settings
from tdmpc2.settings.keys import key_rows

assert Path(tdmpc2.__file__).is_relative_to(sys.argv[1])
def settings(*overrides):
    return train_settings(run_fixtures.composed("train", "device=cpu", *overrides), Path("run"))
assert settings().weights.smooth_coef == 0.25 and settings("smooth_coef=3").weights.smooth_coef == 3
assert settings("smooth_coef=3").config["smooth_coef"] == 3 and settings("smooth_coef=3").identity()["smooth_coef"] == 3
try:
    settings("smooth_coef=-1")
except UserError as error:
    print(error)
row, = (row for row in key_rows() if row.name == "smooth_coef")
print(row)
"""


def test_adding_a_key_touches_one_file(tmp_path: Path) -> None:
    """A copy of the package with one line more takes the key, checks it, records it and lists it."""
    shutil.copytree(ROOT / "tdmpc2", tmp_path / "tdmpc2", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "config", tmp_path / "tdmpc2" / "config")
    changed = tmp_path / "tdmpc2" / "losses" / "weights.py"
    text = changed.read_text()
    assert text.count("\n    def __post_init__") == 1
    changed.write_text(text.replace("\n    def __post_init__", _NEW_KEY))
    done = subprocess.run(
        [sys.executable, "-c", _USED, str(tmp_path)],
        env=environment(PYTHONPATH=f"{tmp_path}:{ROOT / 'tests' / 'support'}"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "smooth_coef must be 0 or more, not -1.0 (and at most 1e+06)." in done.stdout
    assert "program='train', name='smooth_coef', type='number', unit='factor', default='0.25'" in done.stdout


# -- the mechanism ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Some:
    many: int = key(2, "a count", unit="things", source=THIS_PROJECT, check=Whole(1, 9))
    few: int | None = key(None, "another", name="fewest", unit="things", source=THIS_PROJECT, check=Whole(0, 3))
    names: tuple[str, ...] | None = key(None, "some names", unit="names", source=THIS_PROJECT)
    derived: Path | None = None

    def __post_init__(self) -> None:
        check_keys(self, "some.")


@dataclass(frozen=True)
class Repeated:
    many: int = key_of(Some, "many", default=7, text="the same count, here")


@dataclass(frozen=True)
class Elsewhere:
    many: int = key(2, "a count", unit="things", source=THIS_PROJECT, check=Whole(1, 9))


def test_a_schema_takes_the_keys_and_gives_them_back() -> None:
    config = OmegaConf.structured(derived("Config", "Some.", Some))
    assert list(config) == ["many", "fewest", "names"]
    config.merge_with_dotlist(["many=3", "fewest=1", "names=[a,b]"])
    assert from_keys(Some, config, derived=Path("x")) == Some(3, 1, ("a", "b"), Path("x"))
    assert from_keys(Some, OmegaConf.structured(derived("Config", "", Some, only=("fewest",)))) == Some()
    assert from_keys(Some, config, many=5).many == 5
    with pytest.raises(OmegaConfBaseException, match="many"):
        config.merge_with_dotlist(["many=x"])
    for wrong, message in (
        ({"many": 10}, "some.many must be at most 9, not 10"),
        ({"few": -1}, "some.fewest must be at least 0"),
        ({"many": None}, "some.many must be a whole number of 1 to 9, not None"),
    ):
        with pytest.raises(UserError, match=message):
            Some(**wrong)
    assert Some(few=None).few is None


def test_a_derived_schema_changes_defaults_and_refuses_a_second_definition() -> None:
    config = OmegaConf.structured(derived("Config", "", Some, Repeated))
    assert config.many == 7 and list(config) == ["many", "fewest", "names"]
    (name, _, found), *_ = schema_keys(derived("Config", "", Some, Repeated))
    assert (name, found.text, found.unit) == ("many", "the same count, here", "things")
    assert found.definition is next(keys_in(Some))[1].definition
    optional = OmegaConf.structured(derived("Config", "", Some, many=None))
    assert optional.many is None
    optional.merge_with_dotlist(["many=4"])
    below = derived("Config", "", Repeated, groups={"some": derived("Below", "", Some)})
    assert [name for name, _, _ in schema_keys(below)] == ["some.many", "some.fewest", "some.names", "many"]
    with pytest.raises(TypeError, match="many is written in two places"):
        derived("Config", "", Some, Elsewhere)
    with pytest.raises(TypeError, match="no part has the key most"):
        derived("Config", "", Some, only=("most",))
    with pytest.raises(TypeError, match="no part has the key most"):
        derived("Config", "", Some, most=1)
    with pytest.raises(TypeError, match="Some has no key few"):
        key_of(Some, "few")


@pytest.mark.parametrize("left_out", ["text", "unit", "source"])
def test_a_key_says_all_of_it(left_out: str) -> None:
    said = {"text": "a count", "unit": "things", "source": "somewhere", left_out: " "}
    with pytest.raises(TypeError, match="text, unit and source"):
        key(1, **said)


def test_checks_say_what_they_take() -> None:
    for check, text in (
        (Whole(1, 4096), "1 to 4,096"),
        (Within(0, 9), "0 to 9"),
        (Within(0, 9, above=True), "above 0, to 9"),
        (Within(0, 9, infinite=True), "0 to 9, or inf"),
        (Within(0, math.inf, above=True, infinite=True), "above 0, or inf"),
        (Share(zero=True), "[0, 1)"),
        (Share(zero=False), "(0, 1]"),
        (OneOf(("a", "b")), "a, b"),
    ):
        assert str(check) == text
    with pytest.raises(UserError, match=r"^way=c is unknown; choose one of a, b\.$"):
        OneOf(("a", "b"))("way", "c")
    with pytest.raises(UserError, match=r"^way is 'c', expected a, b\.$"):
        OneOf(("a", "b"), "{name} is '{value}', expected {choices}.")("way", "c")
