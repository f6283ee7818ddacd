"""The choice of the number format in which a prompt is processed.

| weights (`stored_weights`) | the processor multiplies bfloat16 | the kernels read |
| --- | --- | --- |
| float32 | | the weights, in float32 |
| bf16 | by an instruction | the weights, in bfloat16 |
| bf16 | otherwise | one layer at a time, in float32 |
| int8 | by an instruction | one layer at a time, rounded to bfloat16 |
| int8 | otherwise | one layer at a time, in float32 |

Without the instruction bfloat16 products are slower than those in float32 (`kernels.simd.features`). The choice is not
measured at run time, so that a seed gives the same text on a processor.
"""

import numpy as np

from threadloom.kernels.simd import DotPath, low_precision_info
from threadloom.stages.inference.member_threads import MemberThreads
from threadloom.stages.inference.prompt import PromptLayers
from threadloom.stages.inference.prompt_float32 import Float32Layers
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.models import Geometry


def prompt_layers(weights: ModelWeights, geometry: Geometry, threads: MemberThreads) -> PromptLayers:
    """Return the layers of a model in the number format in which this processor is fastest, divided among threads."""
    if weights.wte.dtype == np.float32 or geometry.factors or low_precision_info().path is DotPath.FLOAT32:
        return Float32Layers(weights, geometry, threads)
    from threadloom.stages.inference.prompt_bf16 import Bf16Layers  # loads the kernels of 16 bits

    return Bf16Layers(weights, geometry, threads)
