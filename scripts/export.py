"""Starts the program `export` (tdmpc2/programs/export.py).

python scripts/export.py student.pt --task mt30 --out exported/mt30
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import export

if __name__ == "__main__":
    export()
