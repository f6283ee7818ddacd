"""This machine: processor, caches, memory, load; timing of calls on its cores. It imports no kernel.

May import: config, storage, console.
"""

from threadloom.stages.machine.machine import (
    BUSY as BUSY,
    Machine as Machine,
    VectorWidth as VectorWidth,
    cache_root as cache_root,
    detect as detect,
    load_average as load_average,
    load_warning as load_warning,
)
from threadloom.stages.machine.streaming import (
    stream_add as stream_add,
    stream_add_in_place as stream_add_in_place,
    stream_copy as stream_copy,
    stream_negate as stream_negate,
)
from threadloom.stages.machine.thread_limit import ThreadLimit as ThreadLimit, thread_limit as thread_limit
from threadloom.stages.machine.timing import (
    Work as Work,
    alternate_rounds as alternate_rounds,
    seconds_per_call as seconds_per_call,
    throughput as throughput,
)
