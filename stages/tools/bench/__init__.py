"""`threadloom bench`: checks, then throughput, stage by stage and kernel by kernel.

May import: all above.
"""

from threadloom.stages.tools.bench.check import BenchCheckFailed
from threadloom.stages.tools.bench.measurements import run_bench
from threadloom.stages.tools.bench.report import write_json
from threadloom.stages.tools.bench.tables import BenchView

__all__ = ["BenchCheckFailed", "BenchView", "run_bench", "write_json"]
