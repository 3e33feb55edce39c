"""The objective of docs/extending.md, added to a copy of the package as the page says, and trained."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from run_fixtures import ROOT, TINY, environment, store_path

from tdmpc2.reporting.sinks import read_metrics


def test_the_page_s_objective(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    arm, experiment, preset = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shutil.copytree(ROOT / "tdmpc2", tmp_path / "tdmpc2", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "config", tmp_path / "tdmpc2" / "config")
    package, config = tmp_path / "tdmpc2" / "objectives", tmp_path / "tdmpc2" / "config"
    (package / "sureness.py").write_text(code)
    listing = (package / "__init__.py").read_text()
    for there, added in (
        ("OBJECTIVES: tuple", "from tdmpc2.objectives.sureness import SurenessDistillation\n\nOBJECTIVES: tuple"),
        ("    PolicyDistillation,\n)", "    PolicyDistillation,\n    SurenessDistillation,\n)"),
    ):
        assert listing.count(there) == 1
        listing = listing.replace(there, added)
    (package / "__init__.py").write_text(listing)
    (config / "arm" / "sureness.yaml").write_text(arm)
    (config / "experiment" / "objectives" / "sureness.yaml").write_text(experiment)
    (config / "planner" / "mine.yaml").write_text(preset)
    keys = [f"data_dir={store_path()}", "device=cpu", "steps=30", "final_episodes=0", "log_freq=10", *TINY]
    teacher = ["teacher=random", "teacher.latent_dim=32", "teacher.mlp_dim=32", "teacher.enc_dim=32"]
    done = subprocess.run(
        [sys.executable, "-m", "tdmpc2.train", "experiment=objectives/sureness", "planner=mine", *keys, *teacher],
        env=environment(PYTHONPATH=str(tmp_path)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "logs" / "duo" / "full" / "sureness" / "seed1")
    losses = [row["d_sureness_loss"] for row in rows]
    assert len(losses) == 3 and losses[-1] < losses[0] and "distillation_loss" not in rows[0]
