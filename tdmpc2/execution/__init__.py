"""How work runs, updates and plans alike: eagerly, compiled or captured, in which arithmetic, on which device.

Knows nothing of models: `capabilities` tries what a machine can do, `choices` asks it, `capture` records CUDA graphs.
"""

from tdmpc2.execution.capture import CapturedFunction
from tdmpc2.execution.choices import PRECISIONS, Execution, Purpose

__all__ = ["PRECISIONS", "CapturedFunction", "Execution", "Purpose"]
