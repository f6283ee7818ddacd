"""`threadloom bench`: checks, then training speed, stage by stage and kernel by kernel.

May import: all above.
"""

from threadloom.stages.tools.bench.command import bench as bench
