"""The search for a key's value: real Optuna, real locks and processes; only training is short."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from run_fixtures import ROOT, TASKS, TINY, environment, run_program, store_path

from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import load_json
from tdmpc2.programs import search

pytestmark = pytest.mark.skipif(
    find_spec("optuna") is None, reason="optuna is not installed: pip install -e '.[search]'"
)

# Trains nothing: its score is best at d_coef 0.4. It notes each start, and waits where a file asks it to.
STAND_IN = """
import json, signal, sys, time
from pathlib import Path
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, this_machine
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
given = dict(argument.split("=", 1) for argument in sys.argv[1:])
value, seed, folder = float(given["d_coef"]), int(given["seed"]), Path(given["hydra.run.dir"])
with open("starts", "a") as file:
    file.write(json.dumps([value, seed]) + "\\n")
while Path("wait").exists():
    time.sleep(0.05)
if value > 0.9:
    sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
for name, gain in (("evaluation", 0), ("evaluation-prior", 100)):
    returned = 500 - 1000 * (value - 0.4) ** 2 + seed + gain
    episode = EpisodeResult("pendulum-spin", 0, 1, returned, 500)
    EvaluationResult("x", "own", ("pendulum-spin",), (episode,), {}, this_machine("cpu"), 1.0, 500).save_json(
        folder / f"{name}.json")
"""
KEYS = ("final_episodes=1", "exp_name=search", "device=cpu")
FOLDER = Path("logs/mt30/search")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(search, "TRAIN", tmp_path / "stand_in.py")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A search in a process of its own."""
    code = (
        "import sys, pathlib, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tdmpc2.errors import run_program\n"
        "from tdmpc2.programs import search\n"
        "search.TRAIN = pathlib.Path('stand_in.py').absolute()\n"
        "run_program(lambda: search.main(sys.argv[1:]), search.INTERRUPTED)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, *KEYS],
        cwd=folder, env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def starts(folder: Path) -> list[tuple[float, int]]:
    path = folder / "starts"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_starts(folder: Path, count: int) -> None:
    limit = time.monotonic() + 60
    while len(starts(folder)) < count:
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_it_finds_the_best_value_and_goes_on_to_more_trials(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--low", "0.1", "--high", "0.8", "--seeds", "1,2", *KEYS)
    search.main(["--trials", "2", *asked])
    said = capsys.readouterr().out
    assert "trial 1: d_coef" in said and "2 trials, 2 seeds each; the best: python tdmpc2/train.py " in said
    search.main(["--trials", "7", *asked])
    said = capsys.readouterr().out
    assert said.count("best so far") == 5 and "7 trials, 2 seeds each" in said
    began = starts(here)
    assert len(began) == 14 and [seed for _, seed in began] == [1, 2] * 7
    values = [value for value, seed in began if seed == 1]
    assert len(set(values)) > 4 and all(0.1 <= value <= 0.8 for value in values)
    best = min(values, key=lambda value: abs(value - 0.4))
    line = next(line for line in said.splitlines() if line.strip().startswith(f"{best:g} "))
    assert line.split()[1] == f"{(500 - 1000 * (best - 0.4) ** 2 + 1.5) / 10:.2f}", "the mean over seeds"
    assert said.splitlines()[-1].endswith(f"d_coef={best:g}")
    assert (here / FOLDER / f"d_coef-{best:g}" / "seed2" / "evaluation.json").is_file()
    with pytest.raises(UserError, match=r"holds another search, of seeds \[1, 2\], not \[1\]"):
        search.main(["--trials", "9", "--low", "0.1", "--high", "0.8", *KEYS])


def test_a_trial_that_fails_is_passed_over_and_three_end_the_search(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main(["--low", "0.5", "--high", "1", "--trials", "4", "--prior", *KEYS])
    said = capsys.readouterr().out
    values = [value for value, _ in starts(here)]
    failed = sum(value > 0.9 for value in values)
    assert len(values) == 4 and failed == 1, values
    assert said.count("failed\n") == failed and f"; {failed} failed; " in said and "prior alone" in said
    with pytest.raises(UserError, match="3 trials failed one after the other"):
        search.main(["--low", "0.95", "--high", "1", "--storage", "other.journal", *KEYS])


def test_a_trial_that_was_interrupted_goes_on(here: Path) -> None:
    (here / "wait").touch()
    first = started(here, "--trials", "2")
    wait_for_starts(here, 1)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130 and errors.splitlines() == [search.INTERRUPTED], errors
    (here / "wait").unlink()
    with (here / FOLDER / "search.journal").open("a") as file:
        file.write('{"op_code": 4, "work')  # as of a machine that went down while it wrote
    again = started(here, "--trials", "2")
    output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert output.startswith("trial 0 was interrupted, and goes on\ntrial 0: ")
    assert len(starts(here)) == 3 and starts(here)[0] == starts(here)[1]


def test_a_run_that_outlives_its_search_is_waited_for(here: Path) -> None:
    (here / "wait").touch()
    first = started(here, "--trials", "1")
    wait_for_starts(here, 1)
    first.kill()
    first.wait()
    beside = started(here, "--trials", "1")
    output, errors = beside.communicate(timeout=60)
    assert beside.returncode == 0 and output == "no trial has a score; 1 run elsewhere\n", output + errors
    (here / "wait").unlink()
    first.communicate(timeout=60)  # until the run has ended
    again = started(here, "--trials", "1")
    output, errors = again.communicate(timeout=60)
    assert again.returncode == 0 and "trial 0 was interrupted, and goes on" in output, output + errors
    assert len(starts(here)) == 2


def test_two_searches_share_the_trials(here: Path) -> None:
    (here / "wait").touch()
    both = [started(here, "--trials", "6", "--low", "0.1", "--high", "0.8") for _ in range(2)]
    wait_for_starts(here, 2)
    (here / "wait").unlink()
    said = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("".join(output for output, _ in said).count(f"trial {n}: ") for n in range(6)) == [1] * 6
    assert len(starts(here)) == 6 and all("trial " in output for output, _ in said)


def test_whole_numbers_and_mistakes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="final_episodes is 0"):
        search.main(["exp_name=x"])
    with pytest.raises(UserError, match="no such key"):
        search.main(["--key", "dcoef", *KEYS])
    with pytest.raises(UserError, match="is not a number"):
        search.main(["--key", "precision", *KEYS])
    with pytest.raises(UserError, match="did you mean batch_size"):
        search.main(["batchsize=8", *KEYS])
    with pytest.raises(UserError, match=r"d_coef must be at most"):
        search.main(["--high", "1e9", *KEYS])
    wrong = {"whole numbers": ["--key", "horizon", "--low", "2.5", "--high", "4"], "sets this key": ["seed=3"],
             "as 1,2,3": ["--seeds", "a"], "neither": ["--nix"]}  # fmt: skip
    for said, arguments in wrong.items():
        with pytest.raises(SystemExit):
            search.main([*arguments, *KEYS])
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (here / "logs").exists(), "nothing is left"
    whole = search.Search("horizon", 2, 4, False, (1,), False, ())
    assert whole.whole and search.Search("teacher.model_size", 1, 5, False, (1,), False, ()).whole is not None
    assert search._overrides(whole, 3.0, 1)[0] == "horizon=3"


def test_a_real_run_is_scored_by_its_final_evaluation(tmp_path: Path) -> None:
    keys = (*TINY[2:], f"data_dir={store_path()}", f"task={TASKS[1]}", "steps=2", *KEYS)
    done = run_program(
        "scripts/search.py", "--trials", "1", "--key", "lr", "--low", "1e-4", "--high", "1e-3", "--log", *keys,
        cwd=tmp_path, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    (result,) = tmp_path.glob(f"logs/{TASKS[1]}/search/lr-0.0003/seed1/evaluation.json")
    assert f"trial 0: lr 0.0003 scores {load_json(result).score().value:.2f}; best so far" in done.stdout
