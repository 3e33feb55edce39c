"""The program `train` (tdmpc2/programs/train.py), started by its path or as `python -m tdmpc2.train`.

python tdmpc2/train.py task=mt30 model_size=1 teacher=317M teacher.checkpoint=mt30-317M.pt d_coef=0.4
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: the clone's root stands in for this folder, whose packages are not top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tdmpc2.launch import train as main

if __name__ == "__main__":
    main()
