"""This machine: processor, caches, memory, load; timing of calls on its cores. It imports no kernel.

May import: config, storage, console.
"""

from threadloom.stages.machine.machine import (
    BUSY,
    Machine,
    VectorWidth,
    cache_root,
    detect,
    load_average,
    load_warning,
)
from threadloom.stages.machine.streaming import stream_add, stream_add_in_place, stream_copy, stream_negate
from threadloom.stages.machine.timing import (
    Work,
    alternate_rounds,
    seconds_per_call,
    throughput,
)

__all__ = [
    "BUSY",
    "Machine",
    "VectorWidth",
    "Work",
    "alternate_rounds",
    "cache_root",
    "detect",
    "load_average",
    "load_warning",
    "seconds_per_call",
    "stream_add",
    "stream_add_in_place",
    "stream_copy",
    "stream_negate",
    "throughput",
]
