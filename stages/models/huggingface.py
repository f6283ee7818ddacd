"""Tensors of a model under their names in Hugging Face's layout, and its config.json."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from threadloom.stages.models.architecture import Floats, UnsupportedModelError
from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.registry import architecture_of, geometry_of_huggingface


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


def huggingface_config(geometry: Geometry, end_of_text: int | None, came_in: bytes | None = None) -> dict[str, Any]:
    """Return the content of config.json; `end_of_text` is the id of the token that begins and ends texts.

    `came_in` is the config.json of the model that the weights come from. If it describes this geometry, but for the
    context, its model type is written, and its keys that say nothing about the geometry are kept.
    """
    layout = architecture_of(geometry).huggingface
    return layout.config(geometry, end_of_text, None if came_in is None else _keys_of(came_in, geometry))


def _keys_of(config: bytes, geometry: Geometry) -> dict[str, Any] | None:
    """Return the content of a config.json; None if it is of another model, or cannot be read."""
    try:
        found = geometry_of_huggingface(config)
        keys = msgspec.json.decode(config, type=dict[str, Any])
    except (UnsupportedModelError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    same = type(found) is type(geometry) and replace(found, context=geometry.context, lora=geometry.lora) == geometry
    return keys if same else None
