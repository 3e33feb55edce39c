"""Starts the program `match_gradient` (tdmpc2/programs/match_gradient.py).

python scripts/match_gradient.py experiment=controls/dataset_0.40 scale=cpu checkpoint=logs/…/step_00000640.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import match_gradient

if __name__ == "__main__":
    match_gradient()
