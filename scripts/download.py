"""Starts the program `download` (tdmpc2/programs/download.py).

python scripts/download.py data mt30 --to data/hub
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import download

if __name__ == "__main__":
    download()
