"""Starts the program `search` (tdmpc2/programs/search.py).

python scripts/search.py --low 0.05 --high 1 --trials 12 --seeds 1,2,3 scale=cpu teacher=large exp_name=search …
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import search

if __name__ == "__main__":
    search()
