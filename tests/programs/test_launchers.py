"""Sweeps whose jobs run in other processes: by joblib, by submitit here, and by submitit in SLURM's queue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from run_fixtures import ROOT, TINY, environment, run_program, store_path

TRAIN = "tdmpc2/train.py"


def needs(plugin: str) -> pytest.MarkDecorator:
    there = find_spec("hydra_plugins") is not None and find_spec(f"hydra_plugins.{plugin}") is not None
    return pytest.mark.skipif(not there, reason=f"{plugin} is not installed: pip install -e '.[launchers]'")


needs_joblib = needs("hydra_joblib_launcher")
needs_submitit = needs("hydra_submitit_launcher")


def sweep(launcher: str, *overrides: str) -> tuple[str, ...]:
    keys = (*TINY, f"data_dir={store_path()}", "device=cpu", "exp_name=sweep")
    return "-m", f"hydra/launcher={launcher}", *keys, *overrides


def finals(folder: Path) -> list[str]:
    """Those of a sweep over seeds, by seed."""
    return sorted(path.parents[1].name for path in (folder / "logs/duo/sweep").rglob("final.safetensors"))


def check_that_nothing_is_left(folder: Path) -> None:
    assert not list(folder.rglob(".jobs-*")), "the record of the sweep"
    assert not any("simnorm_dim-5" in str(path) for path in folder.rglob("*")), "no empty folder either"


@needs_joblib
def test_joblib_tells_failures_and_goes_on(tmp_path: Path) -> None:
    command = sweep("joblib", "steps=2", "seed=1,2", "simnorm_dim=5,8")
    done = run_program(TRAIN, *command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr + done.stdout
    lines = done.stderr.splitlines()
    failed = [f"job {n} (seed={seed} simnorm_dim=5): latent_dim 32 is not a multiple of simnorm_dim 5."
              for n, seed in ((0, 1), (2, 2))]  # fmt: skip
    assert sorted(lines[:2]) == [f"error: {line}" for line in failed], "at once"
    assert lines[2:4] == failed, "and at the end"
    assert lines[4:] == ["error: 2 of 4 jobs failed; the same command goes on with them."]
    assert finals(tmp_path) == ["seed1", "seed2"]
    assert "job 1: duo: 32-wide latent" in done.stdout and "job 3: 2 updates, " in done.stdout
    check_that_nothing_is_left(tmp_path)
    again = run_program(TRAIN, *command, cwd=tmp_path)
    assert again.returncode == 2 and again.stdout.count("has ended already, after 2 updates") == 2, again.stdout


@needs_joblib
def test_a_function_of_the_main_module_runs_with_one_thread_and_its_value_is_returned(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import threading, torch\n"
        "from hydra.core.hydra_config import HydraConfig\n"
        "from tdmpc2.settings.entry import hydra_entry\n"
        "not_to_be_pickled = threading.Lock()\n"
        "@hydra_entry('evaluate')\n"
        "def main(config):\n"
        "    print('threads', torch.get_num_threads())\n"
        "    return config.seed / 2\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    (tmp_path / "watching.py").write_text(
        "from hydra.experimental.callback import Callback\n"
        "class Watching(Callback):\n"
        "    def on_job_end(self, config, job_return, **others):\n"
        "        print('value', job_return.return_value)\n"
    )
    command = ("-m", "seed=1,3", "checkpoint=x", "+hydra.callbacks.watching._target_=watching.Watching")
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    for launcher in ("basic", "joblib"):
        changes = paths if launcher == "basic" else {**paths, "OMP_NUM_THREADS": ""}
        kept = {name: value for name, value in environment(**changes).items() if value}
        done = subprocess.run(
            [sys.executable, "program.py", *command, f"hydra/launcher={launcher}"],
            cwd=tmp_path, env=kept, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        assert sorted(re.findall(r"value (.*)", done.stdout)) == ["0.5", "1.5"]
    assert re.findall(r"threads (.*)", done.stdout) == ["1", "1"]


@needs_joblib
@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_of_other_processes_never_share_a_folder(processes: int, tmp_path: Path) -> None:
    keys = ("steps=1", "hydra.sweep.subdir=one", "lr=0.1,0.2", f"hydra.launcher.n_jobs={processes}")
    done = run_program(TRAIN, *sweep("joblib", *keys), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: 1 of 2 jobs failed")
    assert "another job of this sweep has this folder" in done.stderr, done.stderr
    check_that_nothing_is_left(tmp_path)


@pytest.mark.parametrize("launcher", [pytest.param("joblib", marks=needs_joblib),
                                      pytest.param("submitit_local", marks=needs_submitit)])  # fmt: skip
def test_an_interrupted_sweep_goes_on_by_the_same_command(launcher: str, tmp_path: Path) -> None:
    command = sweep(launcher, "steps=300", "seed=1,2", "log_freq=1")

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    run = subprocess.Popen(
        [sys.executable, str(ROOT / TRAIN), *command], cwd=tmp_path, env=environment(), preexec_fn=begin,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 60
        while sum(path.stat().st_size > 0 for path in tmp_path.rglob("metrics.jsonl")) < 2:
            assert run.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes that did not leave its group
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130 and errors.splitlines()[-1] == "interrupted", errors
    assert finals(tmp_path) == []
    assert len(list(tmp_path.rglob("state/latest.pt"))) == 2
    check_that_nothing_is_left(tmp_path)
    again = run_program(TRAIN, *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr + again.stdout
    logs = again.stdout + "".join(path.read_text() for path in tmp_path.rglob(".submitit/*/*_log.out"))
    assert finals(tmp_path) == ["seed1", "seed2"] and logs.count("resuming ") == 2


@needs_joblib
def test_a_job_that_is_killed_is_named(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, signal\n"
        "from tdmpc2.settings.entry import hydra_entry\n"
        "@hydra_entry('evaluate')\n"
        "def main(config):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    from tdmpc2.errors import run_program\n"
        "    run_program(main)\n"
    )
    command = ("-m", "hydra/launcher=joblib", "seed=1,2", "checkpoint=x")
    done = run_program(str(tmp_path / "program.py"), *command, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and "job 0 (seed=1): has not ended" in done.stderr, done.stderr
    assert "error: the launcher failed: TerminatedWorkerError: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not list(tmp_path.rglob(".jobs-*"))


# What SLURM's commands do, as far as submitit asks them: jobs of an array begin at once, in sessions of their own. The
# script is copied, as sbatch does: submitit moves it, and makes the folders of the logs, once sbatch has answered.
SBATCH = r"""
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script).groups())
for task in range(first, last + 1):
    told = {"JOB_ID": "7", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": str(task), "NTASKS": "1", "JOB_NUM_NODES": "1",
            "NODEID": "0", "PROCID": "0", "LOCALID": "0", "JOB_NODELIST": "localhost"}
    env = {**os.environ, **{f"SLURM_{name}": value for name, value in told.items()}}
    subprocess.Popen(["bash", "-c", script], env=env, start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
SRUN = r"""
import os, sys
given, files = sys.argv[1:], {}
while given[0].startswith("-"):
    option = given.pop(0)
    if option in ("--output", "--error"):
        files[option] = given.pop(0)
for option, descriptor in (("--output", 1), ("--error", 2)):
    path = files[option].replace("%A", "7").replace("%a", os.environ["SLURM_ARRAY_TASK_ID"]).replace("%t", "0")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), descriptor)
os.execvp(given[0], given)
"""


@needs_submitit
def test_submitit_hands_the_jobs_to_slurm(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "print('JobID|State|NodeList')\n")):
        (commands / name).write_text(f"#!{sys.executable}\n{text}")
        (commands / name).chmod(0o700)
    keys = ("steps=2", "seed=1", "simnorm_dim=5,8", "hydra.launcher.partition=learn", "hydra.launcher.mem_gb=8")
    path = os.pathsep.join([str(commands), os.environ["PATH"]])
    done = run_program(TRAIN, *sweep("submitit_slurm", *keys), cwd=tmp_path, PATH=path)
    failed = "job 0 (simnorm_dim=5): latent_dim 32 is not a multiple of simnorm_dim 5."
    assert done.returncode == 2, done.stderr + done.stdout
    assert done.stderr.splitlines() == [
        f"error: {failed}", failed, "error: 1 of 2 jobs failed; the same command goes on with them."
    ]  # fmt: skip
    assert finals(tmp_path) == ["seed1"]
    check_that_nothing_is_left(tmp_path)
    (script,) = tmp_path.rglob("*_submission.sh")
    asked = set(re.findall(r"#SBATCH --(\S+)", script.read_text()))
    assert asked >= {
        *("array=0-1%2", "partition=learn", "mem=8GB", "cpus-per-task=4", "gpus-per-node=1", "time=240"),
        "job-name=tdmpc2-train",
    }, asked


@needs_submitit
@pytest.mark.skipif(any((Path(p) / "srun").exists() for p in os.get_exec_path()), reason="SLURM is installed here")
def test_without_slurm_one_line_says_so(tmp_path: Path) -> None:
    done = run_program(TRAIN, *sweep("submitit_slurm", "seed=1,2"), cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "the launcher failed: " in done.stderr and "srun" in done.stderr


def test_a_launcher_that_is_not_installed_is_named(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name.startswith('hydra_plugins') else found(name, *a)\n"
        "from tdmpc2.settings.launchers import register_launchers\n"
        "register_launchers(['-m', 'hydra/launcher=joblib'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "hydra/launcher=joblib is not installed: pip install hydra-joblib-launcher" in done.stderr
