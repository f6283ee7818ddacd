"""`threadloom bench`: checks, then speed, stage by stage and kernel by kernel.

May import: models to run.
"""

from threadloom.stages.tools.bench.bench import run_bench, write_json
from threadloom.stages.tools.bench.check import BenchCheckFailed
from threadloom.stages.tools.bench.kernels import adamw_bytes, reduce_bytes
from threadloom.stages.tools.bench.peaks import best_rate, stream
from threadloom.stages.tools.bench.tables import BenchView

__all__ = [
    "BenchCheckFailed",
    "BenchView",
    "adamw_bytes",
    "best_rate",
    "reduce_bytes",
    "run_bench",
    "stream",
    "write_json",
]
