"""Starts the program `learning_curves` (tdmpc2/programs/learning_curves.py).

python scripts/learning_curves.py logs/walker-walk/default/seed1 --out results/curves
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import learning_curves

if __name__ == "__main__":
    learning_curves()
