"""One file per architecture: geometry, parameter shapes, initialisation, names in the Hugging Face layout.

May import: nothing else of stages.
"""

from threadloom.stages.models.gpt2 import (
    Geometry,
    Shape,
    decayed_elements,
    initialise,
    input_gradient_bytes,
    parameter_count,
    parameter_shapes,
)

__all__ = [
    "Geometry",
    "Shape",
    "decayed_elements",
    "initialise",
    "input_gradient_bytes",
    "parameter_count",
    "parameter_shapes",
]
