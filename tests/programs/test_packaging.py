"""The package as it is built and installed: all files in it, found from any folder."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from run_fixtures import ROOT, TINY, environment, store_path

from tdmpc2.settings.entry import CONFIG_DIR

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


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


def test_a_clone_uses_its_own_configurations() -> None:
    assert CONFIG_DIR == ROOT / "config"


def test_configurations_of_an_installed_package_are_its_own(tmp_path: Path) -> None:
    """Also where some other project's `config` lies beside it."""
    entry = tmp_path / "tdmpc2" / "settings" / "entry.py"
    entry.parent.mkdir(parents=True)
    shutil.copy2(ROOT / "tdmpc2/settings/entry.py", entry)
    (tmp_path / "config").mkdir()
    spec = importlib.util.spec_from_file_location("installed_entry", entry)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert tmp_path / "tdmpc2" / "config" == module.CONFIG_DIR


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_every_command_has_its_program(command: str) -> None:
    module, _, function = PROJECT["project"]["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_archives_are_complete(tmp_path: Path) -> None:
    """The wheel has the whole package and the configurations; the source archive all that the repository has."""
    pytest.importorskip("hatchling", reason="the package is built with hatchling, of the dev extra")
    tree, built = source(tmp_path / "source"), tmp_path / "built"
    run([sys.executable, "-m", "hatchling", "build", "-d", str(built)], tree, PYTHONPATH=os.pathsep.join(sys.path))
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    packaged = {name for name in relative_files(tree) if name.startswith("tdmpc2/")}
    assert {"tdmpc2/planner/native.c", "tdmpc2/export/numpy_agent.py", "tdmpc2/data/store.py"} <= packaged
    assert names == packaged | {f"tdmpc2/{name}" for name in relative_files(tree) if name.startswith("config/")}
    with tarfile.open(archive) as file:
        stored = {name.partition("/")[2] for name in file.getnames()}
    assert stored == relative_files(tree) | {"PKG-INFO"}


@pytest.mark.slow
def test_an_installed_package_works_from_any_folder(tmp_path: Path) -> None:
    """`pip install .` into a fresh environment, with the libraries of this one; then training and evaluating."""
    venv, tree = tmp_path / "venv", source(tmp_path / "source")
    run([sys.executable, "-m", "venv", str(venv)], tmp_path)
    python = str(venv / "bin" / "python")
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(tree)], tmp_path)
    shutil.rmtree(tree)
    # A path in a .pth file brings no .pth files of its own: this environment's editable package stays unseen.
    own = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    (Path(own) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run([python, "-c", "import tdmpc2; print(tdmpc2.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(own)

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    keys = [*TINY, f"data_dir={store_path()}", "device=cpu", "steps=2", "save_freq=2"]
    trained = {"command": [str(venv / "bin" / "tdmpc2-train")], "module": [python, "-m", "tdmpc2.train"]}
    for name, program in trained.items():
        run([*program, *keys, f"exp_name={name}"], folder)
    for program in ([str(venv / "bin" / "tdmpc2-evaluate")], [python, "-m", "tdmpc2.evaluate"]):
        checkpoint = next(folder.glob("logs/duo/command/seed1/checkpoints/final.safetensors"))
        run(
            [*program, f"checkpoint={checkpoint}", "eval_episodes=1", "num_workers=0", "device=cpu", "iterations=1"],
            folder,
        )
    for name in PROJECT["project"]["scripts"]:
        assert run([str(venv / "bin" / name), "--help"], folder).strip()
