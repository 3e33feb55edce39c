"""The package as it is built and installed: all files in it, found from any folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_module
from run_fixtures import ROOT, TINY, TINY_PLANNER, environment, store_path

from tdmpc2 import launch, places
from tdmpc2.embedded import COLLECTIONS, TEACHER
from tdmpc2.settings.schema import SCHEMAS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEACHER_TASK = "cup-spin"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive of what belongs to the repository."""
    pytest.importorskip("hatchling", reason="the package is built with hatchling, of the dev extra")
    tree, folder = source(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("built")
    run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], tree, PYTHONPATH=os.pathsep.join(sys.path))
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


def source(folder: Path) -> Path:
    """A copy of what belongs to the repository, without what lies about in a checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("git tells which files belong to the repository, and this is no clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # not one that is deleted and not yet committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def run(command: list[str], cwd: Path, **changes: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment(**changes), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def relative_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def loaded(path: Path) -> ModuleType:
    """A file as a module of its own."""
    spec = importlib.util.spec_from_file_location("loaded_by_a_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_clone_uses_its_own_files() -> None:
    assert places.CONFIG_DIR == ROOT / "config" and places.CHECKPOINTS == ROOT / "checkpoints"


def test_an_installed_package_uses_its_own_files(tmp_path: Path) -> None:
    """Also where some other project's `config` lies beside it."""
    package = tmp_path / "tdmpc2"
    (package / "config").mkdir(parents=True)
    shutil.copy2(ROOT / "tdmpc2/places.py", package)
    for name in ("config", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").touch()
    found = loaded(package / "places.py")
    assert found.INSTALLED and not places.INSTALLED
    assert package / "config" == found.CONFIG_DIR and package / "checkpoints" == found.CHECKPOINTS


def test_the_tree_is_a_module_for_hydra() -> None:
    with initialize_config_module("tdmpc2.config", version_base="1.3"):
        config = compose("train", overrides=["experiment=table1/scratch", "scale=cpu"])
    assert config.steps == 1600 and Path(config.scale.large_checkpoint) == TEACHER


# -- the command -----------------------------------------------------------------------------------------------------


def started_by_scripts() -> set[str]:
    """The names that the scripts of the clone import from `tdmpc2.launch`."""
    files = [*(ROOT / "scripts").glob("*.py"), ROOT / "tdmpc2" / "train.py", ROOT / "tdmpc2" / "evaluate.py"]
    return {
        name
        for file in files
        for name in re.findall(r"^from tdmpc2\.launch import (\w+)", file.read_text(), re.MULTILINE)
    }


def test_the_command_starts_what_the_scripts_start() -> None:
    assert PROJECT["project"]["scripts"] == {"tdmpc2": "tdmpc2.launch:main"}
    started = [getattr(launch, name) for name in sorted(started_by_scripts() - {"document"})]
    assert set(map(id, started)) == set(map(id, launch.COMMANDS.values())) and len(started) == len(launch.COMMANDS)
    assert SCHEMAS.keys() <= launch.COMMANDS.keys()


def test_the_command_tells_what_it_has(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        monkeypatch.setattr(sys, "argv", ["/somewhere/tdmpc2", *arguments])
        launch.main()
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("usage: tdmpc2 PROGRAM")
        told = dict(line.split(maxsplit=1) for line in lines[2:])
        assert told.keys() == launch.COMMANDS.keys() and told["train"].startswith("Trains or distils a student")
    monkeypatch.setattr(sys, "argv", ["tdmpc2", "--version"])
    launch.main()
    assert capsys.readouterr().out == f"tdmpc2 {PROJECT['project']['version']}\n"


@pytest.mark.parametrize(
    ("word", "advice"), [("trian", "did you mean train?"), ("\x1bdance", "tdmpc2 --help lists the programs.")]
)
def test_a_word_that_is_no_program(
    word: str, advice: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tdmpc2", word])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: tdmpc2 has no program '") and said.endswith(f"{advice}\n")
    assert "\x1b" not in said


def test_a_program_goes_by_the_command_it_was_started_by(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setitem(launch.COMMANDS, "data-card", lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["/bin/tdmpc2", "data-card", "data/mine", "--out", "card"])
    launch.main()
    assert seen == [["/bin/tdmpc2 data-card", "data/mine", "--out", "card"]]


# -- the archives ----------------------------------------------------------------------------------------------------


def test_archives_are_complete(built: tuple[Path, Path], tmp_path: Path) -> None:
    """The wheel has the package, configurations and bundled agents; the source archive all that the repository has."""
    wheel, archive = built
    tree = source(tmp_path)
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    files = relative_files(tree)
    packaged = {name for name in files if name.startswith("tdmpc2/")} - {"tdmpc2/config.py"}
    assert {"tdmpc2/planner/native.c", "tdmpc2/export/numpy_agent.py", "tdmpc2/py.typed"} <= packaged
    assert names == packaged | {f"tdmpc2/{name}" for name in files if name.startswith(("config/", "checkpoints/"))}
    bundled = {TEACHER.name, *(part.agent for part in COLLECTIONS if part.agent)}
    assert {f"tdmpc2/checkpoints/{name}" for name in bundled} <= names
    assert wheel.stat().st_size < 18e6
    with tarfile.open(archive) as file:
        stored = {name.partition("/")[2] for name in file.getnames()}
    assert stored == files | {"PKG-INFO"}


def test_a_package_index_is_told_what_it_shows(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(file.read(name).decode())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or []) and metadata.get_all("Project-URL")
    page = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert "# TD-MPC-Opt" in page and all(link.startswith("https://") for link in links)


def test_links_of_the_readme_on_a_package_index() -> None:
    pytest.importorskip("hatchling")
    shown = loaded(ROOT / "hatch_build.py").for_index
    text = "![a](docs/a.svg) [b](docs/b.md#of-a-\n  part) [c](https://c) [d](#d)"
    assert shown(text, None) == " b [c](https://c) [d](#d)"
    assert shown(text, "https://host/owner/name") == (
        "![a](https://host/owner/name/raw/main/docs/a.svg) [b](https://host/owner/name/blob/main/docs/b.md#of-a-part) "
        "[c](https://c) [d](#d)"
    )


@pytest.mark.slow
def test_an_installed_package_works_from_any_folder(built: tuple[Path, Path], tmp_path: Path) -> None:
    """The wheel in a fresh environment, with the libraries of this one: training, evaluating, exporting."""
    pytest.importorskip("onnx", reason="of the export extra")
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", str(venv)], tmp_path)
    python, command = str(venv / "bin" / "python"), str(venv / "bin" / "tdmpc2")
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(built[0])], tmp_path)
    # A path in a .pth file brings no .pth files of its own: this environment's editable package stays unseen.
    own = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    (Path(own) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run([python, "-c", "import tdmpc2; print(tdmpc2.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(own)

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    keys = [*TINY, f"data_dir={store_path()}", "device=cpu", "steps=2", "save_freq=2"]
    for name, program in {"command": [command, "train"], "module": [python, "-m", "tdmpc2.train"]}.items():
        run([*program, *keys, f"exp_name={name}"], folder)
    (checkpoint,) = folder.glob("logs/duo/command/seed1/checkpoints/final.safetensors")
    quick = ["eval_episodes=1", "num_workers=0", "device=cpu", *TINY_PLANNER]
    for program in ([command, "evaluate"], [python, "-m", "tdmpc2.evaluate"]):
        assert "normalised score" in run([*program, f"checkpoint={checkpoint}", *quick], folder)
    planner = [f"--{key.replace('_', '-')}" for key in TINY_PLANNER]
    assert "exported to" in run([command, "export", str(checkpoint), "--out", "exported", *planner], folder)
    assert (folder / "exported").is_dir()
    bundled = Path(own) / "tdmpc2" / "checkpoints" / TEACHER.name
    alone = [f"tasks=[{TEACHER_TASK}]", "mpc=false", "output=teacher"]
    assert TEACHER_TASK in run([command, "evaluate", f"checkpoint={bundled}", *alone, *quick], folder)
    composing = (
        "from hydra import compose, initialize_config_module\n"
        "with initialize_config_module('tdmpc2.config', version_base='1.3'):\n"
        "    print(compose('train', overrides=['scale=cpu', 'task=quickstart']).scale.large_checkpoint)\n"
    )
    assert run([python, "-c", composing], folder).strip() == str(bundled)
    for word in ("collect", "data-card", "import", "quickstart"):
        assert run([command, word, "--help"], folder).strip()
