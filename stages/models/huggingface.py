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


def huggingface_parts(geometry: Geometry) -> dict[str, str]:
    """Return name of a stored tensor in the layout → name of the tensor that it is, or that it is a part of."""
    parts = architecture_of(geometry).huggingface.parts(geometry)
    return {name: part.tensor for name, part in parts.items()}


def huggingface_tied(geometry: Geometry) -> dict[str, str]:
    """Return the output projection of a tied model, which is not stored → name of the tensor that it is tied to."""
    layout, parts = architecture_of(geometry).huggingface, huggingface_parts(geometry)
    return {} if layout.output_projection in parts else {layout.output_projection: parts[layout.token_embedding]}


def huggingface_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return name in the layout → shape of every tensor, in the order of `huggingface_views`."""
    architecture = architecture_of(geometry)
    shapes = architecture.parameter_shapes(geometry)
    return {name: part.shape(shapes[part.tensor]) for name, part in architecture.huggingface.parts(geometry).items()}
