"""Starts the program `picture` (tdmpc2/programs/picture.py).

python scripts/picture.py docs/picture.json --out docs/score_by_size.svg [--markdown]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import picture

if __name__ == "__main__":
    picture()
