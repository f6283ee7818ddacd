"""The arithmetic of an update in bfloat16 and float16. Loaded only by runs in 16 bits.

May import: what `stages.step` may import, and `stages.step`.
"""

from threadloom.stages.step.bits16.compute import Bits16Compute

__all__ = [
    "Bits16Compute",
]
