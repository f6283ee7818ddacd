"""The arrays and the kernels of each architecture in bfloat16 and float16, loaded by runs in 16 bits only.

`stages.layouts` has the same file names for float32.

May import: models, layouts.
"""

from threadloom.stages.layouts.bits16.layout import (
    ArraySpec as ArraySpec,
    ArraySpecs as ArraySpecs,
    Bits16Layout as Bits16Layout,
)
from threadloom.stages.layouts.bits16.registry import bits16_layout_of as bits16_layout_of
