"""The arithmetic of an update in bfloat16 and float16, loaded by runs in 16 bits only.

`stages.step.float32` has the same file names for float32. May import: what `stages.step` may import, and `stages.step`.

May import: all above.
"""

from threadloom.stages.step.bits16.compute import Bits16Compute as Bits16Compute
from threadloom.stages.step.bits16.divided import DividedBf16Compute as DividedBf16Compute
