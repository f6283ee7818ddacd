"""The registry of architectures. To add one, write its file and list it here."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from threadloom.stages.models.architecture import Architecture, UnsupportedModelError
from threadloom.stages.models.geometry import Geometry
from threadloom.stages.models.gpt2 import Gpt2
from threadloom.stages.models.llama import Llama

_ALL: tuple[Architecture[Any], ...] = (Gpt2(), Llama())
ARCHITECTURES: Mapping[str, Architecture[Any]] = {architecture.name: architecture for architecture in _ALL}
"""Name → architecture."""


class _ModelType(msgspec.Struct):
    model_type: str = "gpt2"


def architecture_of(geometry: Geometry) -> Architecture[Any]:
    """Return the architecture that a geometry belongs to."""
    return ARCHITECTURES[geometry.architecture]


def geometry_of_huggingface(config: bytes) -> Geometry:
    """Return the geometry of a model from its config.json in Hugging Face's layout.

    Raises UnsupportedModelError for a model that no architecture computes, msgspec.DecodeError for other content.
    """
    found = msgspec.json.decode(config, type=_ModelType).model_type
    layouts = [architecture.huggingface for architecture in ARCHITECTURES.values()]
    for layout in layouts:
        if found in layout.model_types:
            return layout.geometry(config)
    expected = " or ".join(json.dumps(name) for layout in layouts for name in layout.model_types)
    raise UnsupportedModelError(f"model_type = {expected}", json.dumps(found), "an unsupported architecture")
