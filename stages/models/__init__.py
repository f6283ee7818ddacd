"""Model architectures, one file each: sizes, tensor shapes, initialisation, names in Hugging Face's layout.

May import: nothing.
"""

from threadloom.stages.models.architecture import HuggingFaceLayout, UnsupportedModelError
from threadloom.stages.models.geometry import Geometry, Shape, input_gradient_bytes
from threadloom.stages.models.huggingface import huggingface_shapes, huggingface_views
from threadloom.stages.models.parameters import decayed_elements, initialise, parameter_count, parameter_shapes
from threadloom.stages.models.registry import ARCHITECTURES, architecture_of, geometry_of_huggingface

__all__ = [
    "ARCHITECTURES",
    "Geometry",
    "HuggingFaceLayout",
    "Shape",
    "UnsupportedModelError",
    "architecture_of",
    "decayed_elements",
    "geometry_of_huggingface",
    "huggingface_shapes",
    "huggingface_views",
    "initialise",
    "input_gradient_bytes",
    "parameter_count",
    "parameter_shapes",
]
