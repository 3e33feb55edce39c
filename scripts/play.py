"""Starts the program `play` (tdmpc2/programs/play.py).

python scripts/play.py checkpoint=student.pt task=cup-spin
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import play

if __name__ == "__main__":
    play()
