"""Starts the program `collect` (tdmpc2/programs/collect.py).

python scripts/collect.py data_dir=data/mine task=mt30 episodes=4 behaviour=oscillate noise=0.1
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import collect

if __name__ == "__main__":
    collect()
