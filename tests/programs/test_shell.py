"""What a shell and a file system do to programs: consoles that go away, paths of any letters, limits, sweeps."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_lines import Ended, ProgramServer
from run_fixtures import DUO_KEYS, ROOT, TASKS, TINY, environment, files_in, store_path, tiny_run

from tdmpc2.errors import UserError, as_user_error
from tdmpc2.fileio import check_writable, safe_name, write_or_rescue
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.settings.convert import result_name

TRAIN = (*TINY, "device=cpu", "log_freq=1")


@pytest.fixture(scope="module")
def server() -> Iterator[ProgramServer]:
    started = ProgramServer()
    yield started
    started.close()


def keys() -> tuple[str, ...]:
    return (*TRAIN, f"data_dir={store_path()}")


def error_of(ended: Ended) -> str:
    """The one line that a refused command line ends in."""
    assert ended.code == 2, (ended.code, ended.output, ended.errors)
    lines = ended.errors.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.errors
    return lines[0]


def done(ended: Ended) -> str:
    assert ended.code == 0, (ended.code, ended.output, ended.errors)
    return ended.output


def started(*arguments: str, cwd: Path, before: Callable[[], object] | None = None, **how: object) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tdmpc2" / "train.py"), *arguments]
    changes = how.pop("env", {})
    assert isinstance(changes, dict)

    def begin() -> None:
        for number in (signal.SIGHUP, signal.SIGINT):  # whatever ignores them where the tests run
            signal.signal(number, signal.SIG_DFL)
        if before is not None:
            before()

    return subprocess.Popen(command, cwd=cwd, env=environment(OMP_NUM_THREADS="1", **changes), preexec_fn=begin, **how)  # type: ignore[call-overload]


def assert_trained(folder: Path, steps: int) -> None:
    run_dir = folder / "logs" / "duo" / "default" / "seed1"
    assert (run_dir / "checkpoints" / "final.safetensors").is_file()
    assert (run_dir / "state" / "latest.pt").is_file()
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, steps + 1))


# -- the console -------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    run = started(*keys(), "steps=12", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.readline()
    run.stdout.close()  # as head does
    assert run.stderr.read() == ""
    assert run.wait() == 0
    assert_trained(tmp_path, 12)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_console_on_a_full_disk_or_closed(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        assert started(*keys(), "steps=6", cwd=tmp_path, stdout=full, stderr=full).wait() == 0
    assert_trained(tmp_path, 6)

    def close_all() -> None:
        for descriptor in (0, 1, 2):
            os.close(descriptor)

    other = tmp_path / "closed"
    other.mkdir()
    assert started(*keys(), "steps=6", cwd=other, before=close_all).wait() == 0
    assert_trained(other, 6)


def test_a_terminal_of_other_letters(tmp_path: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    run = started(
        *keys(), "steps=1", "exp_name=é", cwd=tmp_path, env=ascii_only, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = run.communicate()
    assert run.returncode == 0 and b"\\xe9" in output, errors


def test_control_characters_are_shown_by_their_numbers(server: ProgramServer, tmp_path: Path) -> None:
    """Whatever a command line holds: a title of the window, a colour, a line's end."""
    ended = server.run(tmp_path / "a", "compare", ["a\x1b]0;title\x07.json", "b.json"])
    assert ended.code == 2 and "\x1b" not in ended.errors and "\\x1b]0;title\\x07" in ended.errors
    ended = server.run(tmp_path / "b", "export", ["x.pt", "--out", "here", "one\ntwo"])
    assert ended.code == 2 and ended.errors.splitlines()[-1] == "export.py: error: unrecognized arguments: one\\ntwo"


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_terminal_that_is_closed(tmp_path: Path, name: str) -> None:
    run = started(*keys(), "steps=100_000", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    run.stdout.readline()
    run.stdout.readline()
    run.send_signal(signal.Signals[name])
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and "the state is written" in output and errors == "", errors
    assert (tmp_path / "logs" / "duo" / "default" / "seed1" / "state" / "latest.pt").is_file()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_a_group_of_processes_that_is_asked_to_stop(tmp_path: Path, name: str) -> None:
    """As a closed terminal or a cluster's scheduler does it: simulators hear it too, and leave it to the run."""
    keys = (*TRAIN[:-1], f"data_dir={store_path()}", "num_workers=1", "eval_freq=1", "eval_episodes=1000", "steps=2")
    run = started(
        *keys, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    state = tmp_path / "logs" / "duo" / "default" / "seed1" / "state" / "latest.pt"
    wanted = time.monotonic() + 60
    while not state.exists() and time.monotonic() < wanted:
        time.sleep(0.05)
    time.sleep(2)  # within the evaluation that the state was written before
    os.killpg(run.pid, signal.Signals[name])
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and "interrupted at step 1" in output and errors == "", errors


def test_nohup_is_respected(tmp_path: Path) -> None:
    run = started(
        *keys(), "steps=40", cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert run.stdout is not None
    run.stdout.readline()
    run.stdout.readline()
    run.send_signal(signal.SIGHUP)
    run.communicate(timeout=120)
    assert run.returncode == 0


def test_threads_do_not_spin(tmp_path: Path) -> None:
    code = "import os, tdmpc2.launch as l; l.wait_briefly(); print(os.environ.get('GOMP_SPINCOUNT'))"

    def said(**changes: str) -> str:
        found = environment(PYTHONPATH=str(ROOT), **changes)
        if "GOMP_SPINCOUNT" not in changes:
            found.pop("GOMP_SPINCOUNT", None)
        return subprocess.run([sys.executable, "-c", code], env=found, capture_output=True, text=True).stdout.strip()

    assert said() == "10000"
    assert said(GOMP_SPINCOUNT="5") == "5" and said(OMP_WAIT_POLICY="active") == "None"


# -- the system -----------------------------------------------------------------------------------------------------


def test_what_the_file_system_refuses_is_one_line(server: ProgramServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for number, (argument, said) in enumerate(
        (
            ("hydra.run.dir=/proc/x", "/proc/x: no such file or folder"),
            ("hydra.run.dir=../file/x", "a part of the path is a file"),
            ("hydra.run.dir=../file", "a part of the path is a file"),
            (f"exp_name={'a' * 300}", "the name is too long"),
            ("data_dir=nowhere", "nowhere"),
        )
    ):
        folder = tmp_path / f"try{number}"
        line = error_of(server.run(folder, "train", [*keys(), argument]))
        assert said in line and "Errno" not in line, line
        assert list(folder.iterdir()) == [], "a start that failed leaves nothing"
    assert (tmp_path / "file").read_text() == "in the way"


def test_limits_of_the_system_are_one_line(tmp_path: Path) -> None:
    run = started(
        *keys(), cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)),
    )  # fmt: skip
    _, errors = run.communicate()
    assert (
        run.returncode == 2
        and errors == "error: only 16 files may be open at a time; raise the limit (ulimit -n 1024).\n"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    run = started(*keys(), cwd=gone, stderr=subprocess.PIPE, text=True, before=gone.rmdir)
    _, errors = run.communicate()
    assert run.returncode == 2 and errors.startswith("error: the working folder is not there any more"), errors


def test_errors_of_the_system_and_the_memory_are_told() -> None:
    assert "is open" not in str(as_user_error(FileNotFoundError(2, "No such file", "a/b")))
    assert str(as_user_error(FileNotFoundError(2, "No such file", "a/b"))).startswith("a/b: no such file or folder")
    assert "Lower batch_size" in str(as_user_error(MemoryError()))
    of_torch = RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: …")
    assert "Lower batch_size" in str(as_user_error(of_torch))
    assert as_user_error(ZeroDivisionError()) is None and as_user_error(RuntimeError("a bug")) is None


def test_a_place_is_probed_before_the_work(server: ProgramServer, tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "steps=1")
    final = tmp_path / "run" / "checkpoints" / "final.safetensors"
    (tmp_path / "file").write_text("in the way")
    for program, extra in (("evaluate", "eval_episodes=1000"), ("quantize", "eval_episodes=1000")):
        for output in ("/proc/x", str(tmp_path / "file" / "x"), "x" * 300):
            arguments = (f"checkpoint={final}", extra, "num_workers=0", "device=cpu", f"output={output}")
            ended = server.run(tmp_path / "there", program, arguments)
            assert ended.code == 2 and "cannot write" in ended.errors and ended.files == (), ended
            assert "evaluating" not in ended.errors


def test_probing_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "file.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder").mkdir()
    for path, reason in (
        (tmp_path / "folder", "a folder of that name"),
        (tmp_path / ("x" * 300), "too long"),
        (Path("/proc/nothing/file"), "no such file or folder"),
    ):
        with pytest.raises(UserError, match=reason):
            check_writable(path)


def test_results_that_cannot_be_written_are_put_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    def write(path: Path) -> None:
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}.")
        path.write_text("hours of work")

    with pytest.raises(UserError, match=r"cannot write .* is in (.*)\.") as caught:
        write_or_rescue(tmp_path / "file" / "results.json", write)
    rescued = Path(str(caught.value).rpartition(" is in ")[2].rstrip("."))
    assert rescued.read_text() == "hours of work" and rescued.name == "results.json"
    shutil.rmtree(rescued.parent)


# -- keys and paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("+d_coeff=0.4", "+d_coeff: this program has no such key; did you mean d_coef?"),
        ("+obs=rgb", "+obs: this program has no such key; --help shows all keys"),
        ("+teacher.random=true", "+teacher.random: this program has no such key"),
        ("d_coeff=0.4", "did you mean d_coef?"),
        ("++batchsize=3", "did you mean batch_size?"),
        ("~lr", "~lr: the program needs this key"),
        ("lr=???", "lr has no value"),
        ("exp_name=${nothing}", "nothing"),
        ("+hydra.foo=1", "Hydra has no such setting"),
        ("lr=(", "quote a value"),
        ("teacher.checkpoint=x.pt", "teacher=none trains without one"),
        ("teacher.precision=bfloat16", "teacher=none trains without one"),
        ("data_dir=", "data_dir is empty"),
        ("checkpoint=~nobody-of-that-name/x", "Could not determine home directory"),
    ],
)
def test_what_a_program_does_not_know_is_refused(
    server: ProgramServer, tmp_path: Path, argument: str, said: str
) -> None:
    ended = server.run(tmp_path / "here", "train", [*keys(), argument])
    assert said in error_of(ended) and ended.files == ()


@pytest.mark.parametrize("name", ["d_coef=0.4,x=1", "é", "a b", "it's", "[a]", "{a: 1}", "a,b", "100%"])
def test_paths_of_any_letters_are_taken(server: ProgramServer, tmp_path: Path, name: str) -> None:
    tiny_run(tmp_path / name / "run", "steps=1")
    final = tmp_path / name / "run" / "checkpoints" / "final.safetensors"
    tasks = ("eval_episodes=1", f"tasks=[{TASKS[1]}]", "mpc=false", "num_workers=0", "device=cpu")
    output = done(server.run(tmp_path / "here", "evaluate", [f"checkpoint={final}", f"output=./{name}", *tasks]))
    assert str(final) in output
    assert files_in(tmp_path / "here" / name) == ["episodes.csv", "evaluation.json"]


def test_home_is_expanded(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "steps=1")
    command = [sys.executable, str(ROOT / "scripts" / "quantize.py"), "checkpoint=~/run/checkpoints/final.safetensors"]
    run = subprocess.run(
        [*command, "output=~/half", "evaluate=false", "device=cpu"],
        cwd="/", env=environment(HOME=str(tmp_path)), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "half" / "final-fp16-deploy.safetensors").is_file()


# -- names ------------------------------------------------------------------------------------------------------------


def test_safe_names_differ_where_names_do() -> None:
    assert safe_name("lr-0.1+rho-0.5") == "lr-0.1+rho-0.5"
    names = ["a=b", "a,b", "a b", "a-b", "é", "è", "x" * 400, "x" * 401, "a/b", "[a]"]
    found = [safe_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(len(name) <= 120 and name.isascii() and not set(name) & set("=, []/'\"") for name in found)


def test_results_of_different_runs_have_different_names() -> None:
    runs = ("mt30/default", "walkers/default", "mt30/default/d_coef-0.4", "mt30/sweep/d_coef-0.4", "a/b/c/d/e")
    checkpoints = [Path("/x/logs") / run / "seed1" / "checkpoints" / "final.safetensors" for run in runs]
    names = [result_name(checkpoint) for checkpoint in checkpoints]
    assert names[0] == "mt30-default-seed1-final" and len(set(names)) == len(names)


def test_what_was_made_from_another_student_is_not_replaced(server: ProgramServer, tmp_path: Path) -> None:
    for seed in (1, 2):
        tiny_run(tmp_path / f"run{seed}", "steps=1", f"seed={seed}")
    here = tmp_path / "here"
    first, second = (tmp_path / f"run{seed}" / "checkpoints" / "final.safetensors" for seed in (1, 2))
    arguments = ("evaluate=false", "device=cpu", "output=half")
    done(server.run(here, "quantize", [f"checkpoint={first}", *arguments]))
    made = {name: (here / "half" / name).read_bytes() for name in files_in(here / "half")}
    done(server.run(here, "quantize", [f"checkpoint={first}", *arguments]))
    refused = server.run(here, "quantize", [f"checkpoint={second}", *arguments])
    assert refused.code == 2 and "was made from another student" in refused.errors
    assert {name: (here / "half" / name).read_bytes() for name in files_in(here / "half")} == made

    evaluation = ("eval_episodes=1", f"tasks=[{TASKS[1]}]", "mpc=false", "num_workers=0", "device=cpu", "output=score")
    done(server.run(here, "evaluate", [f"checkpoint={first}", *evaluation]))
    shutil.copy(second, first)  # the same path, another student
    refused = server.run(here, "evaluate", [f"checkpoint={first}", *evaluation])
    assert refused.code == 2 and "another weights" in refused.errors


# -- sweeps -----------------------------------------------------------------------------------------------------------


def test_an_interrupted_sweep_goes_on_by_the_same_command(server: ProgramServer, tmp_path: Path) -> None:
    command = ("-m", *keys(), "steps=150", "seed=1,2", "exp_name=sweep")
    run = started(*command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    while "step 3/" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    finals = list((tmp_path / "logs" / "duo" / "sweep").rglob("final.safetensors"))
    assert finals == []
    again = subprocess.run(
        [sys.executable, str(ROOT / "tdmpc2" / "train.py"), *command], cwd=tmp_path, env=environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0 and again.stdout.count("resuming") == 1, again.stderr
    assert len(list((tmp_path / "logs" / "duo" / "sweep").rglob("final.safetensors"))) == 2
    assert done(server.run(tmp_path, "train", command)).count("has ended already, after 150 updates") == 2


def test_a_refused_job_does_not_end_the_others(server: ProgramServer, tmp_path: Path) -> None:
    ended = server.run(tmp_path, "train", ["-m", *keys(), "steps=1", "simnorm_dim=8,5,4"])
    assert ended.code == 2
    last = ended.errors.splitlines()
    assert last[-1] == "error: 1 of 3 jobs failed; the same command goes on with them."
    assert last[-2] == "job 1 (simnorm_dim=5): latent_dim 32 is not a multiple of simnorm_dim 5."
    assert len(list(tmp_path.rglob("final.safetensors"))) == 2
    assert not any("simnorm_dim-5" in str(path) for path in tmp_path.rglob("*")), "no empty folder either"


def test_jobs_of_a_sweep_never_share_a_folder(server: ProgramServer, tmp_path: Path) -> None:
    other = shutil.copytree(store_path(), tmp_path / "other")
    sweep = ("-m", *TRAIN, "steps=1", f"data_dir={store_path()},{other}", "exp_name=data")
    done(server.run(tmp_path, "train", sweep))
    sets = ("-m", *TRAIN[1:], f"data_dir={store_path()}", "task.name=duo", "steps=1", "exp_name=sets")
    first, second = TASKS
    done(server.run(tmp_path, "train", [*sets, f"task.tasks=[{first},{second}],[{second},{first}]"]))
    for name in ("data", "sets"):
        finals = list((tmp_path / "logs" / "duo" / name).rglob("final.safetensors"))
        assert len(finals) == 2
        assert not any(set("=,[] ") & set(str(path.relative_to(tmp_path))) for path in finals)
    ended = server.run(tmp_path, "train", ["-m", *keys(), "steps=1", "exp_name=x", "hydra.sweep.subdir=one", "lr=1,2"])
    assert ended.code == 2 and "another job of this sweep has this folder" in ended.errors


def test_several_checkpoints_are_evaluated_by_one_command(server: ProgramServer, tmp_path: Path) -> None:
    runs = ("a", "b")
    for name in runs:
        tiny_run(tmp_path / "logs" / "duo" / name / "seed1", "steps=1")
    paths = [f"logs/duo/{name}/seed1/checkpoints/final.safetensors" for name in runs]
    tasks = ("eval_episodes=1", f"tasks=[{TASKS[1]}]", "mpc=false", "num_workers=0", "device=cpu")
    done(server.run(tmp_path, "evaluate", ["-m", f"checkpoint={','.join(paths)}", *tasks]))
    results = files_in(tmp_path / "results")
    assert [name for name in results if name.endswith(".json")] == [
        f"duo-{name}-seed1-final/evaluation.json" for name in runs
    ]


def test_a_sweep_of_many_keys_has_a_name_that_fits(server: ProgramServer, tmp_path: Path) -> None:
    many = [f"{key}=0.5" for key in ("lr", "tau", "rho", "reward_coef", "value_coef", "entropy_coef", "dropout")]
    many += ["log_std_min=-9", "log_std_max=1", "vmin=-9", "vmax=9", "horizon=2", "warm_start=false", "min_std=0.1"]
    ended = server.run(tmp_path, "train", ["-m", *keys(), "steps=1", "d_coef=0.1,0.2", *many])
    assert ended.code == 0, ended.errors
    assert len(list(tmp_path.rglob("final.safetensors"))) == 2


# -- resuming ------------------------------------------------------------------------------------------------------


def resumed(folder: Path, *changes: str) -> int:
    return tiny_run(folder, *changes, "resume=true").step


def test_resume_compares_contents(tmp_path: Path) -> None:
    tiny_run(tmp_path / "first", "steps=1")
    start = tmp_path / "first" / "checkpoints" / "final.safetensors"
    elsewhere = shutil.copy(start, tmp_path / "copy.safetensors")
    run_dir = tmp_path / "run"
    tiny_run(run_dir, "steps=2", f"checkpoint={start}")
    assert resumed(run_dir, "steps=3", f"checkpoint={elsewhere}") == 3
    assert resumed(run_dir, "steps=4") == 4, "a resumed student needs no file"
    tiny_run(tmp_path / "second", "steps=2")
    other = tmp_path / "second" / "checkpoints" / "final.safetensors"
    with pytest.raises(UserError, match="cannot resume with other settings: checkpoint was 'content"):
        resumed(run_dir, "steps=5", f"checkpoint={other}")
    start.unlink()
    assert resumed(run_dir, "steps=5", f"checkpoint={start}") == 5, "the file it started from need not be there"
    with pytest.raises(UserError, match="checkpoint was None"):
        resumed(tmp_path / "second", "steps=3", f"checkpoint={other}")


def test_a_state_of_an_earlier_version_names_its_checkpoint(tmp_path: Path) -> None:
    from tdmpc2.training.identity import check_identity, resumed_start

    file = tmp_path / "start.pt"
    file.write_bytes(b"weights")
    saved = {"checkpoint": str(file), "teacher": "317M", "lr": 1.0}
    for given in (file, tmp_path / "x" / ".." / "start.pt", None):
        check_identity("state", saved, {"lr": 1.0, "teacher": "labels", **resumed_start(saved, given)})


def test_resume_on_a_store_that_has_grown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tdmpc2.data.store import EpisodeStore

    data = shutil.copytree(store_path(), tmp_path / "store")
    tiny_run(tmp_path / "whole", "steps=6", f"data_dir={data}")
    tiny_run(tmp_path / "run", "steps=3", f"data_dir={data}")
    store = EpisodeStore.open(data)
    block = store.read_episodes(0, 1)
    store.append(block.obs * 2, block.action, block.reward, block.task)
    capsys.readouterr()
    assert resumed(tmp_path / "run", "steps=6", f"data_dir={data}") == 6
    assert "has grown from 4 to 5 episodes" in capsys.readouterr().out
    whole, run = (tmp_path / name / "checkpoints" / "final.safetensors" for name in ("whole", "run"))
    from tdmpc2.checkpointing import read_checkpoint

    expected = read_checkpoint(whole).tensors
    assert all((value == expected[name]).all() for name, value in read_checkpoint(run).tensors.items())


def test_resume_auto_does_what_the_folder_needs(server: ProgramServer, tmp_path: Path) -> None:
    command = (*keys(), "resume=auto")
    assert "resuming" not in done(server.run(tmp_path, "train", [*command, "steps=2"]))
    assert "at step 2 of 4" in done(server.run(tmp_path, "train", [*command, "steps=4"]))
    assert "has ended already, after 4 updates" in done(server.run(tmp_path, "train", [*command, "steps=4"]))
    assert "lr was" in error_of(server.run(tmp_path, "train", [*command, "steps=4", "lr=1e-2"]))
    assert "resume=maybe" in error_of(server.run(tmp_path, "train", [*command, "resume=maybe"]))


def test_checkpoints_of_a_finished_run_are_not_replaced(server: ProgramServer, tmp_path: Path) -> None:
    done(server.run(tmp_path, "train", [*keys(), "steps=2"]))
    run_dir = tmp_path / "logs" / "duo" / "default" / "seed1"
    shutil.rmtree(run_dir / "state")
    before = {name: (run_dir / name).read_bytes() for name in files_in(run_dir)}
    for resume in ("resume=false", "resume=auto"):
        ended = server.run(tmp_path, "train", [*keys(), "steps=1", "lr=1e-2", resume])
        assert ended.code == 2 and "holds checkpoints of an earlier run" in ended.errors
    assert {name: (run_dir / name).read_bytes() for name in files_in(run_dir)} == before


def test_data_that_fails_keeps_what_was_learned(tmp_path: Path) -> None:
    data = shutil.copytree(store_path(), tmp_path / "store")
    run_dir = tmp_path / "run"
    run = started(
        *TRAIN, f"data_dir={data}", "steps=1_000_000", "state_freq=1_000_000", f"hydra.run.dir={run_dir}",
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    for _ in range(5):
        run.stdout.readline()
    os.truncate(data / "rows.bin", 1000)
    _, errors = run.communicate(timeout=60)
    if run.returncode == -signal.SIGBUS:  # cut off in the very moment of a read: then at least this is said
        assert "Bus error" in errors
        return
    assert run.returncode == 2 and "rows.bin" in errors and len(errors.splitlines()) == 1, errors
    assert (run_dir / "state" / "latest.pt").is_file(), "the state of the last whole update"
    config = json.loads((run_dir / "config.json").read_text())
    assert config["steps"] == 1_000_000


def test_single_task_keys_still_reach_the_run(server: ProgramServer, tmp_path: Path) -> None:
    """What the quoting of paths must leave alone."""
    arguments = [*DUO_KEYS, *TINY[2:], "device=cpu", f"data_dir={store_path()}", "steps=1", "checkpoint=null"]
    assert "1 updates" in done(server.run(tmp_path, "train", arguments))
