"""Starts the program `label` (tdmpc2/programs/label.py).

python scripts/label.py data_dir=data/mt30 teacher=317M teacher.checkpoint=mt30-317M.pt teacher.precision=bfloat16
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import label

if __name__ == "__main__":
    label()
