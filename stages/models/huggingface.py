"""Tensors of a model under their names in Hugging Face's layout."""

from collections.abc import Mapping

from threadloom.stages.models.architecture import Floats, HuggingFaceLayout
from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.registry import architecture_of


def huggingface_views(weights: Mapping[str, Floats], layout: HuggingFaceLayout) -> dict[str, Floats]:
    """Return name in the layout → view of a tensor: read the views to save a model, write to them to load one."""
    views: dict[str, Floats] = {}
    for name, theirs in layout.names.items():
        if "{layer}" in theirs:
            views |= {layout.prefix + theirs.format(layer=layer): view for layer, view in enumerate(weights[name])}
        else:
            views[layout.prefix + theirs] = weights[name]
    return views


def huggingface_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return name in the layout → shape of every tensor, in the order of `huggingface_views`."""
    architecture = architecture_of(geometry)
    layout = architecture.huggingface
    shapes: dict[str, Shape] = {}
    for name, shape in architecture.parameter_shapes(geometry).items():
        theirs = layout.names[name]
        if "{layer}" in theirs:
            shapes |= {layout.prefix + theirs.format(layer=layer): shape[1:] for layer in range(shape[0])}
        else:
            shapes[layout.prefix + theirs] = shape
    return shapes
