"""The view of a parameter arena as the tuple that kernels take."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats
from threadloom.stages.layouts.layout import ModelWeights
from threadloom.stages.layouts.registry import layout_of
from threadloom.stages.models import Geometry, architecture_of, parameter_shapes


def as_weights(geometry: Geometry, views: Mapping[str, NDArray[np.float32]]) -> ModelWeights:
    """Return the views of a parameter arena as the tuple that kernels take.

    A field without a view is an array without elements, or the tensor that it is tied to.
    """
    kind, tied = layout_of(geometry).weights, architecture_of(geometry).tied(geometry)

    def tensor(field: str) -> Floats:
        name = tied.get(field, field)
        return views[name] if name in views else _without_elements(geometry, field)

    weights: ModelWeights = kind(*map(tensor, kind._fields))
    return weights


def field_of(geometry: Geometry, tensor: str) -> str:
    """Return the field of that tuple in which a tensor is."""
    tied = architecture_of(geometry).tied(geometry)
    return tensor if tensor in layout_of(geometry).weights._fields else {tied[field]: field for field in tied}[tensor]


def _without_elements(geometry: Geometry, field: str) -> Floats:
    """Return the array of a field that has no view; kernels index its first axis, the layers, if it is stacked.

    A tensor that a model lacks is a bias or a norm of its layers, with the axes (L, columns), or an adapter, (L, P,
    columns).
    """
    missing = (0, 0, 0) if field.endswith(("_a", "_b")) else (0, 0)
    axes = len(parameter_shapes(geometry).get(field, missing))
    first = 0 if field in architecture_of(geometry).unstacked else geometry.layers
    return np.zeros((first, *(0,) * (axes - 1)), np.float32)
