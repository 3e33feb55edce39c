"""Reports of runs: what is read from folders, the statistics, and what the page says of missing and damaged runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_fixtures import ROOT, SHARED, run_program
from scipy import stats

from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine
from tdmpc2.settings.entry import CONFIG_DIR
from tdmpc2.study.arms import TABLES, scratch_of
from tdmpc2.study.page import write_report
from tdmpc2.study.runs import gather, read_run
from tdmpc2.study.statistics import arm_difference, arm_score, detectable_difference

TASKS = ("cup-spin", "pendulum-spin", "fish-swim")
ADDED = "hydra.job.config.override_dirname.exclude_keys="


def evaluation(seed: int, means: tuple[float, ...], episodes: int = 2, spread: float = 20.0) -> EvaluationResult:
    """Returns around the means, apart by `spread`, so that the mean is exact."""
    offsets = spread * (np.arange(episodes) - (episodes - 1) / 2)
    held = [
        EpisodeResult(task, n, seed * 100 + n, mean + float(offsets[n]), 500)
        for task, mean in zip(TASKS, means, strict=True)
        for n in range(episodes)
    ]
    return EvaluationResult("a run", "mini", TASKS, tuple(held), {}, Machine("a processor", 2, "cpu"), 1.0, 500)


def make_run(folder: Path, arm: str, seed: int, score: float | None, scale: str = "cpu", **more: float) -> Path:
    """A run's folder, with evaluations around `score`; None leaves it unfinished."""
    path = folder / "mini" / scale / arm / f"seed{seed}"
    path.mkdir(parents=True)
    config = {"exp_name": f"{scale}/{arm}", "seed": seed, "steps": 1600, "batch_size": 128, "task": {"name": "mini"}}
    (path / "config.json").write_text(json.dumps(config))
    start = {
        "command": ["train.py", f"experiment=objectives/{arm}", "a b", f"{ADDED}[seed]"],
        "commit": "0123456789abcdef",
        "dirty": True,
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "a processor", "cores": 2, "device": "cpu"},
        "began": "2026-01-01T10:00:00+00:00",
    }
    ended = None
    if score is not None:
        ended = {"updates": 1600, "updates_per_second": 10.0, "at": "2026-01-01T10:04:30+00:00"}
    (path / "run.json").write_text(json.dumps({"format": "tdmpc2-run", "starts": [start], "ended": ended}))
    lines = [{"step": step, "category": "train", "time": 1.0, "original_loss": 3 - step / 100} for step in (100, 200)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if score is not None:
        means = (10 * score - 100, 10 * score, 10 * score + 100)
        evaluation(seed, means).save_json(path / "evaluation.json")
        evaluation(seed, tuple(m / 2 for m in means)).save_json(path / "evaluation-prior.json")
        for name, other in more.items():
            if "_" not in name:
                (path / "checkpoints").mkdir(exist_ok=True)
                (path / "checkpoints" / f"final-{name}.safetensors").write_bytes(bytes(3072))
            evaluation(seed, (10 * other,) * 3).save_json(path / f"evaluation-{name}.json")
    return path


def interval_of(means: np.ndarray) -> tuple[float, float]:
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


# -- statistics ------------------------------------------------------------------------------------------------------


def test_an_arm_s_score_over_seeds() -> None:
    means = {1: (100.0, 200.0, 300.0), 2: (120.0, 260.0, 280.0), 3: (80.0, 230.0, 320.0)}
    score = arm_score({seed: evaluation(seed, values) for seed, values in means.items()})
    assert score is not None and score.seeds == (1, 2, 3) and score.over == "seeds by task"
    values = np.array(list(means.values())) / 10
    assert score.mean == pytest.approx(values.mean())
    ordered = np.sort(values.ravel())
    assert score.iqm == pytest.approx(ordered[2:7].mean()), "a quarter of nine is two, left out at each end"
    assert score.tasks == pytest.approx({"cup-spin": 10.0, "pendulum-spin": 23.0, "fish-swim": 30.0})
    # An independent stratified bootstrap: seeds drawn anew within each task.
    rng = np.random.default_rng(5)
    drawn = np.stack([values[rng.integers(0, 3, (20_000, 3)), task].mean(1) for task in range(3)]).mean(0)
    assert score.interval is not None
    assert score.interval.low == pytest.approx(np.percentile(drawn, 2.5), abs=0.1)
    assert score.interval.high == pytest.approx(np.percentile(drawn, 97.5), abs=0.1)


def test_one_seed_has_an_interval_over_episodes_and_says_so() -> None:
    score = arm_score({4: evaluation(4, (100.0, 200.0, 300.0))})
    assert score is not None and score.over == "episodes" and score.interval is not None
    assert score.interval.low < 20 < score.interval.high
    single = arm_score({4: evaluation(4, (100.0, 200.0, 300.0), episodes=1)})
    assert single is not None and single.over == "nothing" and single.interval is None
    assert arm_score({}) is None


def test_seeds_and_tasks_are_resampled_together() -> None:
    """A seed stands for a run in all tasks: what a seed adds to all of them does not average out over tasks."""
    rng = np.random.default_rng(1)
    values = rng.normal(300, 60, (4, 1)) + rng.normal(0, 40, (1, 3)) + rng.normal(0, 5, (4, 3))  # [seeds, tasks]
    score = arm_score({seed: evaluation(seed, tuple(row)) for seed, row in enumerate(values)})
    assert score is not None and score.wider is not None and score.interval is not None
    drawn = [values[rng.integers(0, 4, 4)][:, rng.integers(0, 3, 3)].mean() / 10 for _ in range(20_000)]
    assert (score.wider.low, score.wider.high) == pytest.approx(interval_of(np.array(drawn)), abs=0.3)
    assert score.wider.low < score.interval.low and score.wider.high > score.interval.high
    shifted = {seed: evaluation(seed, tuple(row + 50)) for seed, row in enumerate(values)}
    same = arm_difference({seed: evaluation(seed, tuple(row)) for seed, row in enumerate(values)}, shifted)
    assert same is not None and same.wider is not None and same.wider.low == pytest.approx(same.wider.high)
    one = arm_score({4: evaluation(4, (100.0, 200.0, 300.0))})
    assert one is not None and one.wider is None


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_the_power_of_a_design_is_that_of_the_t_test(seeds: int) -> None:
    least = detectable_difference(4.0, seeds)
    rng = np.random.default_rng(0)
    found = stats.ttest_1samp(rng.normal(least, 4.0, (20_000, seeds)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_differences_are_paired_by_seed() -> None:
    first = {seed: evaluation(seed, (100.0 * seed, 200.0, 300.0)) for seed in (1, 2, 3)}
    gains = {1: 30.0, 2: 60.0, 3: 45.0, 4: 900.0}
    second = {s: evaluation(s, (100.0 * s + gain, 200.0 + gain, 300.0 + gain)) for s, gain in gains.items()}
    found = arm_difference(first, second)
    assert found is not None and found.seeds == (1, 2, 3) and found.over == "seeds"
    assert found.each == pytest.approx((3.0, 6.0, 4.5)) and found.mean == pytest.approx(4.5)
    half = stats.t.ppf(0.975, 2) * np.std([3, 6, 4.5], ddof=1) / math.sqrt(3)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((4.5 - half, 4.5 + half))
    assert found.tasks["cup-spin"][0] == pytest.approx(4.5)
    one = arm_difference({1: first[1]}, second)
    assert one is not None and one.over == "episodes" and one.mean == pytest.approx(3.0)
    assert arm_difference(first, {9: second[1]}) is None


# -- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    path = make_run(tmp_path, "scratch", 3, 20.0, **{"step_00000320": 5.0, "step_00000320-prior": 4.0, "fp16": 19.0})
    run = read_run(path)
    assert run is not None and (run.scale, run.arm, run.variant, run.seed) == ("cpu", "scratch", "", 3)
    assert {*run.evaluations} == {
        *(("final", True), ("final", False), ("step_00000320", True), ("step_00000320", False), ("fp16", True)),
    }
    assert run.evaluations["step_00000320", False].score().value == pytest.approx(4.0)
    assert run.starts[0].command == "train.py experiment=objectives/scratch 'a b'"
    assert run.starts[0].commit == "01234567+" and run.updates_per_second == 10.0
    assert run.training_minutes == pytest.approx(4.5)
    assert run.series("total_loss") == [] and run.bytes_of(None) is None and run.notes == ()


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no such folder; give folders of runs"):
        gather([tmp_path / "none"])
    with pytest.raises(UserError, match=r"no runs here \(folders with config\.json\)"):
        gather([tmp_path])
    (tmp_path / "config.json").write_text('{"seed": 1}')
    with pytest.raises(UserError, match="no runs here"):
        gather([tmp_path])


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_report_of_a_study(tmp_path: Path) -> None:
    scores = {"scratch": 50.0, "reward_0.40": 52.0, "dataset_0.40": 51.0, "value": 60.0, "reward_0.25": 51.5}
    for arm, score in scores.items():
        for seed in (1, 2, 3):
            make_run(tmp_path, arm, seed, score + seed * (1 if arm == "scratch" else 2))
    for seed in (1, 2):
        saved = {f"step_{step:08d}{way}": 20.0 + step / 100 for step in (800, 1600) for way in ("", "-prior")}
        make_run(tmp_path, "reward_0.45_long", seed, 55.0, **saved, fp16=54.5, int4=30.0)
    make_run(tmp_path, "policy", 1, None)
    make_run(tmp_path, "own <name>", 1, 10.0)
    make_run(tmp_path, "scratch", 1, 14.0, scale="gpu")
    damaged = make_run(tmp_path, "value", 4, 60.0)
    (damaged / "evaluation.json").write_text("{")
    out = tmp_path / "out"
    page = write_report([tmp_path / "mini"], out)
    assert page == out / "report.html" and "<html" in page.read_text()
    text = (out / "report.md").read_text()
    lines = text.splitlines()
    assert "## mini, scale cpu" in lines and "## mini, scale gpu" in lines, "scales are not mixed"
    by_name = {row[0]: row for row in reversed(table_rows(text))}
    claim = by_name["it is the teacher's knowledge: more than the dataset's own rewards give"]
    assert claim[1:3] == ["-", "+1.00"] and claim[5:] == ["1, 2, 3", "seeds", "holds"] and "3 seeds are few" in text
    claim = by_name["reward distillation (d_coef 0.4) beats no teacher"]
    assert claim[1] == "+3.81" and claim[2] == "+4.00" and claim[-1] == "holds"
    assert by_name["next latents through principal components hurt"][1:3] == ["+9.07", "missing"]
    assert by_name["no distillation"][1:3] == ["14.04", "52.00"]
    assert by_name["d_coef 0.05"] == ["d_coef 0.05", "13.61", "missing", "-", "-", "-", "none", "-"]
    assert by_name["values"][-2] == "1, 2, 3 (4 without a score)"
    assert by_name["policy prior"][-2] == "1 without a score"
    assert by_name["int4 of this project"][1:5] == ["-", "-", "0.00", "30.00"]
    assert by_name["FP16"][1:5] == ["28.45", "3.90", "0.00", "54.50"], "the fixture's file has 3 KiB"
    prior = {row[0]: row for row in table_rows(text.partition("scale gpu")[0])}
    assert prior["no distillation"][1] == "26.00" and "int8 of this project" in by_name, "a table of the prior alone"
    assert "over 3 seeds is 1.00 points planned and 0.50 points prior alone. If" in text and "of 2.4 planned" in text
    assert "### Score against d_coef (table 1)" in lines and "### Score against updates (figure 3)" in lines
    assert "    python tdmpc2/train.py -m experiment=table1 scale=cpu seed=1,2,3" in lines
    assert any(str(damaged / "evaluation.json") in line for line in lines), "a damaged file is named"
    assert f"- {tmp_path / 'mini/cpu/policy/seed1'}" in lines, "unfinished"
    assert r"own \<name>" in text and "own <name>" not in page.read_text() and "own &lt;name&gt;" in page.read_text()
    figures = json.loads((out / "report.json").read_text())
    (cpu,) = (group for group in figures["groups"] if group["scale"] == "cpu")
    assert cpu["arms"]["scratch"]["planned"]["mean"] == pytest.approx(52.0)
    assert cpu["differences"]["value - scratch"]["planned"]["mean"] == pytest.approx(12.0)
    long = cpu["arms"]["reward_0.45_long"]
    assert long["checkpoints"]["step_00000800"]["prior alone"]["mean"] == pytest.approx(28.0)
    assert cpu["arms"]["scratch"]["learning"] == {"original_loss": [[100, 2.0], [200, 1.0]]}
    assert cpu["bytes"]["fp16"] == 3072 and cpu["bytes"]["int8"] is None
    assert any(run["arm"] == "policy" and not run["finished"] for run in cpu["runs"])
    assert {path.name for path in out.glob("*.svg")} >= {"mini-cpu-table1.svg", "mini-cpu-differences.svg"}


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables of a Markdown text."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def report_of(folder: Path) -> str:
    write_report([folder / "mini"], folder / "out")
    return (folder / "out" / "report.md").read_text()


def test_arms_are_compared_at_the_same_batch_and_updates(tmp_path: Path) -> None:
    scores = {
        "scratch": 50.0,
        "scratch_long": 60.0,
        "reward_0.45_long": 61.0,
        "reward_0.40_small_batch": 55.0,
        "own": 58,
    }
    for arm, score in scores.items():
        for seed in (1, 2):
            make_run(tmp_path, arm, seed, score)
    for seed in (1, 2):  # an arm of one's own, trained for longer
        path = tmp_path / "mini" / "cpu" / "own" / f"seed{seed}" / "config.json"
        path.write_text(path.read_text().replace('"steps": 1600', '"steps": 9000'))
    write_report([tmp_path / "mini"], tmp_path / "out")
    (group,) = json.loads((tmp_path / "out" / "report.json").read_text())["groups"]
    held = {name: value["planned"] for name, value in group["differences"].items() if value["planned"]}
    assert {name: value["mean"] for name, value in held.items()} == pytest.approx(
        {"reward_0.45_long - scratch_long": 1.0}
    )
    rows = [row[:3] for row in table_rows((tmp_path / "out" / "report.md").read_text()) if row[2] == "+1.00"]
    assert rows == [
        ["so it does at the longest budget (d_coef 0.45)", "+0.76", "+1.00"],
        ["distilled, batch 256, 1M", "scratch, batch 256, 1M", "+1.00"],
    ]
    assert scratch_of("scratch") is None and scratch_of("value") == "scratch"


def test_a_whole_table_4_lacks_nothing(tmp_path: Path) -> None:
    schemes = {"fp16": 54.5, "paper-mixed": 20.0, "paper-int8": 5.0, "int8": 54.0, "int4": 30.0}
    make_run(tmp_path, "reward_0.45_long", 1, 55.0, **schemes)
    text = report_of(tmp_path)
    table = text.partition("### Table 4")[2].partition("### ")[0]
    assert "missing" not in table and "experiment=table4" not in table
    assert "![Score against the size" not in table and "quickstart" not in text


def test_arms_of_several_tables_alone_make_one_of_them(tmp_path: Path) -> None:
    make_run(tmp_path, "scratch", 1, 50.0)
    text = report_of(tmp_path)
    assert "### Table 1" in text and "### Table 2" not in text
    assert "    python tdmpc2/train.py -m experiment=table2 scale=cpu seed=1,2,3" in text.splitlines()
    assert "One seed" not in text, "there is no difference yet"
    make_run(tmp_path, "reward_0.40", 1, 52.0)
    assert "One seed: these intervals are over its evaluation episodes" in report_of(tmp_path)


def test_one_bad_run_hides_no_other(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path, "scratch", seed, 50.0 + seed)
        make_run(tmp_path, "reward_0.40", seed, 52.0 + seed)
    damaged = make_run(tmp_path, "value", 1, 60.0) / "config.json"
    damaged.write_text("{")
    foreign = make_run(tmp_path, "value", 2, 60.0) / "config.json"
    foreign.write_text('{"seed": "2"}')
    record = make_run(tmp_path, "policy", 1, 60.0) / "run.json"
    record.write_bytes(b"\xff")
    log = make_run(tmp_path, "policy", 2, 60.0) / "metrics.jsonl"
    log.write_text("nothing\n")
    other = make_run(tmp_path, "scratch", 4, 50.0)
    wrong = evaluation(4, (100.0, 200.0, 300.0))
    episodes = tuple(EpisodeResult("walker-run", e.episode, e.seed, 1.0, 5) for e in wrong.episodes[:2])
    EvaluationResult("r", "mini", ("walker-run",), episodes, {}, wrong.machine, 1.0, 5).save_json(
        other / "evaluation.json"
    )
    broken = make_run(tmp_path, "scratch", 5, 50.0)
    evaluation(5, (math.nan, 200.0, 300.0)).save_json(broken / "evaluation.json")
    copy = make_run(tmp_path / "mini" / "later", "scratch", 1, 10.0)
    text = report_of(tmp_path)
    for path, said in (
        (damaged, "is not valid JSON"),
        (foreign, "is not a run's configuration: it needs 'seed' and 'task'"),
        (record, "is not valid JSON"),
        (log, "no line of it can be read"),
        (other, "final, planned: evaluated on other tasks (walker-run)"),
        (broken, "final, planned: not all of its returns are finite"),
    ):
        assert any(str(path) in line and said in line for line in text.splitlines()), path
    assert f"left out: {copy} is the same arm and seed as {tmp_path / 'mini/cpu/scratch/seed1'}" in text
    row = next(row for row in table_rows(text) if row[0] == "no teacher")
    assert row[-2] == "1, 2, 3 (4, 5 without a score)"
    assert row[1] == "52.00" and "nan" not in row
    assert "not in this report: 3 notes at the end" in text
    with pytest.raises(UserError, match=r"no runs here .* left out: .*config.json is not valid JSON"):
        gather([damaged.parent])


def test_of_two_same_runs_the_finished_one_is_taken(tmp_path: Path) -> None:
    make_run(tmp_path, "scratch", 1, None)
    make_run(tmp_path / "mini" / "later", "scratch", 1, 40.0)
    found = gather([tmp_path / "mini", tmp_path])
    assert len(found.runs) == 1 and ("final", True) in found.runs[0].evaluations and len(found.notes) == 1


def test_runs_of_one_seed_on_other_episodes_have_a_difference_without_an_interval() -> None:
    found = arm_difference({1: evaluation(1, (100.0, 200.0, 300.0))}, {1: evaluation(7, (130.0, 230.0, 330.0))})
    assert found is not None and found.mean == pytest.approx(3.0)
    assert found.interval is None and found.over == "nothing"


def test_returns_that_are_not_finite_have_no_interval() -> None:
    held = {1: evaluation(1, (math.nan, 200.0, 300.0)), 2: evaluation(2, (100.0, 200.0, 300.0))}
    score, difference = arm_score(held), arm_difference(dict.fromkeys(held, held[2]), held)
    assert score is not None and score.interval is None and score.over == "nothing"
    assert difference is not None and difference.interval is None and difference.over == "nothing"


def test_published_figures_are_the_papers() -> None:
    path = SHARED / "reference" / "paper_results.json"
    if not path.is_file():
        pytest.skip("the reference figures are not at hand")
    paper = json.loads(path.read_text())
    published = {t.name: [row.published for row in t.rows] for t in TABLES}
    assert sorted(published["table1"]) == sorted(paper["table1_d_coef"]["rows"].values())
    scores = [row["score"] for row in paper["table2_setups"] if "FP16" not in row["method"]]
    assert published["table2"] == scores
    assert sorted(published["table3"]) == sorted(paper["table3_teacher"].values())
    table4 = [(row.published, row.published_mib) for t in TABLES if t.name == "table4" for row in t.rows]
    assert table4[:4] == [(row["score"], row["MiB"]) for row in paper["table4_quantisation"].values()]


def test_the_program(tmp_path: Path) -> None:
    make_run(tmp_path, "scratch", 1, 50.0)
    done = run_program("scripts/report.py", "mini", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "results" / "report" / "report.html").is_file(), done.stderr
    done = run_program("scripts/report.py", "mini", "--frames", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("no pictures: "), "the agent's file is not there"
    done = run_program("scripts/report.py", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere: no such folder")


def test_every_row_of_a_table_is_an_experiment() -> None:
    for table in TABLES:
        rows = {}
        for path in (CONFIG_DIR / "experiment" / table.experiment).glob("*.yaml"):
            (arm,) = (entry for entry in yaml.safe_load(path.read_text())["defaults"] if entry != "_self_")
            rows[path.stem] = arm.removeprefix("/arm/")
        assert {row.name or row.arm: row.arm for row in table.rows} == rows, table.name
    for path in (CONFIG_DIR / "arm").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["exp_name"] == f"${{scale.name}}/{path.stem}"


def test_pages_made_from_the_code_are_up_to_date() -> None:
    done = run_program("scripts/document.py", "--check", "--docs", str(ROOT / "docs"), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
