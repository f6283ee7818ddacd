"""Tensors of a model under their names in Hugging Face's layout."""

from collections.abc import Mapping

from threadloom.stages.models.architecture import Floats
from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.registry import architecture_of


def huggingface_views(weights: Mapping[str, Floats], geometry: Geometry) -> dict[str, Floats]:
    """Return name in the layout → view of a tensor: read the views to save a model, write to them to load one.

    A view may be transposed, or a range of columns, so it need not be contiguous.
    """
    parts = architecture_of(geometry).huggingface.parts(geometry)
    return {name: part.view(weights[part.tensor]) for name, part in parts.items()}


def huggingface_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return name in the layout → shape of every tensor, in the order of `huggingface_views`."""
    architecture = architecture_of(geometry)
    shapes = architecture.parameter_shapes(geometry)
    return {name: part.shape(shapes[part.tensor]) for name, part in architecture.huggingface.parts(geometry).items()}
