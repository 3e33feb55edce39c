"""Starts the program `import_data` (tdmpc2/programs/import_data.py).

python scripts/import_data.py data/raw/mt30/chunk_*.pt --store data/mt30 [--dtype float16]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from tdmpc2.launch import import_data

if __name__ == "__main__":
    import_data()
