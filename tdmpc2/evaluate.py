"""The program `evaluate` (tdmpc2/programs/evaluate.py), started by its path or as `python -m tdmpc2.evaluate`.

python tdmpc2/evaluate.py checkpoint=student.pt task=mt30 eval_episodes=10
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: the clone's root stands in for this folder, whose packages are not top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tdmpc2.launch import evaluate as main

if __name__ == "__main__":
    main()
