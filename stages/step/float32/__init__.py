"""The arithmetic of an update in float32. `stages.step.bits16` has the same file names for bfloat16 and float16.

May import: all above.
"""

from threadloom.stages.step.float32.compute import Float32Compute as Float32Compute
from threadloom.stages.step.float32.divided import DividedFloat32Compute as DividedFloat32Compute
from threadloom.stages.step.float32.optimizer import Float32Update as Float32Update
