"""Starts the program `quantize` (tdmpc2/programs/quantize.py).

python scripts/quantize.py checkpoint=logs/mt30/default/seed1/checkpoints/final.safetensors scheme=int8
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import quantize

if __name__ == "__main__":
    quantize()
