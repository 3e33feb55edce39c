"""Starts the program `restamp` (tdmpc2/programs/restamp.py).

python scripts/restamp.py exported/mt30
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import restamp

if __name__ == "__main__":
    restamp()
