"""Starts the program `quickstart` (tdmpc2/programs/quickstart.py).

python scripts/quickstart.py [--device cuda]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import quickstart

if __name__ == "__main__":
    quickstart()
