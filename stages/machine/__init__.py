"""This machine: processor, caches, memory, load; timing of functions on its cores.

May import: config, storage, console.
"""

from threadloom.stages.machine.machine import (
    BUSY,
    Machine,
    VectorWidth,
    cache_root,
    detect,
    load_average,
    others_at_work,
)
from threadloom.stages.machine.measuring import GEMM_SIZE, Measured, measure_machine, rate

__all__ = [
    "BUSY",
    "GEMM_SIZE",
    "Machine",
    "Measured",
    "VectorWidth",
    "cache_root",
    "detect",
    "load_average",
    "measure_machine",
    "others_at_work",
    "rate",
]
