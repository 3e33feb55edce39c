"""Starts the program `data_card` (tdmpc2/programs/data_card.py).

python scripts/data_card.py data/mt30 --out results/data_card/mt30
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import data_card

if __name__ == "__main__":
    data_card()
