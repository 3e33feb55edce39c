"""Starts the program `compare` (tdmpc2/programs/compare.py).

python scripts/compare.py a.json b.json [--over episodes|tasks] [--json out.json] [--markdown]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import compare

if __name__ == "__main__":
    compare()
