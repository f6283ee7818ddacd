"""Tensors of adapters under their names in PEFT's layout.

PEFT stores both matrices of an adapter as torch.nn.Linear does: `lora_A` (rank, inputs) and `lora_B` (outputs, rank),
also for the Conv1D layers of a GPT-2.
"""

from collections.abc import Mapping, Set

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models import (
    Geometry,
    adapted_modules,
    architecture_of,
    field_names,
    huggingface_tied,
)
from threadloom.stages.storage import ADAPTER_PREFIX

Floats = NDArray[np.float32]


def adapter_views(weights: Mapping[str, Floats], geometry: Geometry, saved: Set[str]) -> dict[str, Floats]:
    """Return name in PEFT's layout → view of a tensor: read the views to save adapters, write to them to load some.

    `saved` are the tensors of the model that are trained as a whole. A tied token embedding is there under the name of
    the output projection as well.
    """
    assert geometry.lora is not None
    views: dict[str, Floats] = {}
    for layer in range(geometry.layers):
        for module in adapted_modules(geometry, layer):
            a, b = field_names(module.tensor)
            rows = slice(module.first_row, module.first_row + geometry.lora.rank)
            views[f"{ADAPTER_PREFIX}{module.path}.lora_A.weight"] = weights[a][layer, rows]
            views[f"{ADAPTER_PREFIX}{module.path}.lora_B.weight"] = weights[b][layer, rows, slice(*module.columns)].T
    parts = architecture_of(geometry).huggingface.parts(geometry)
    whole = {name: part.view(weights[part.tensor]) for name, part in parts.items() if part.tensor in saved}
    whole |= {head: weights[tensor] for head, tensor in huggingface_tied(geometry).items() if tensor in saved}
    return views | {f"{ADAPTER_PREFIX}{name}": view for name, view in whole.items()}
