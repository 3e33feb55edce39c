"""Starts the program `join` (tdmpc2/programs/join.py).

python scripts/join.py results/a/evaluation.json results/b/evaluation.json --out results/all/evaluation.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import join

if __name__ == "__main__":
    join()
