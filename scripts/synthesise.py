"""Starts the program `synthesise` (tdmpc2/programs/synthesise.py).

python scripts/synthesise.py --store data/synthetic --episodes 690000 --dtype float16
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import synthesise

if __name__ == "__main__":
    synthesise()
