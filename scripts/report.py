"""Starts the program `report` (tdmpc2/programs/report.py).

python scripts/report.py logs/quickstart/cpu --out results/report
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import report

if __name__ == "__main__":
    report()
