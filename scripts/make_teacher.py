"""Starts the program `make_teacher` (tdmpc2/programs/make_teacher.py).

python scripts/make_teacher.py --out checkpoints/quickstart_teacher.safetensors --work logs/quickstart_teacher
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import make_teacher

if __name__ == "__main__":
    make_teacher()
