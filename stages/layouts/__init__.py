"""The arrays and the kernels of each architecture, one file each: named tuples, shapes of activations and scratch.

A layout here is the architecture in float32, with the parts that no number format changes; `stages.layouts.bits16` has
its 16-bit counterparts, which runs in 16 bits alone load.

May import: models.
"""

from threadloom.stages.layouts.gpt2_residues import residues_in as residues_in
from threadloom.stages.layouts.layout import (
    Layout as Layout,
    ModelWeights as ModelWeights,
    head_counts as head_counts,
)
from threadloom.stages.layouts.lora import dropped_elements as dropped_elements, lora_ranks as lora_ranks
from threadloom.stages.layouts.registry import LAYOUTS as LAYOUTS, layout_of as layout_of
from threadloom.stages.layouts.weights import as_weights as as_weights, field_of as field_of
