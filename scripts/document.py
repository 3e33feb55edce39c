"""Starts the program `document` (tdmpc2/programs/document.py).

python scripts/document.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import document

if __name__ == "__main__":
    document()
