"""The sizes of a model as JSON values, as a checkpoint records them."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from threadloom.stages.models.architecture import UnsupportedModelError
from threadloom.stages.models.geometry import Geometry
from threadloom.stages.models.registry import ARCHITECTURES


def geometry_to_json(geometry: Geometry) -> dict[str, Any]:
    """Return the sizes, and the name of the architecture, as JSON values."""
    sizes: dict[str, Any] = msgspec.to_builtins(geometry, order="deterministic")
    for name in ("factors", "bands", "residues"):
        del sizes[name]  # the token embedding is computed from factors: as a model, it is as any other
    if geometry.lora is None:
        del sizes["lora"]  # as in records of models without adapters since the first release
    return {"architecture": geometry.architecture, **sizes}


def geometry_from_json(record: Mapping[str, Any]) -> Geometry:
    """Return the geometry of a record; one without an architecture is of GPT-2, which was the only one at first.

    Raises UnsupportedModelError for an unknown architecture, msgspec.ValidationError for missing sizes and values of
    the wrong type.
    """
    name = record.get("architecture", Geometry.architecture)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        expected = " or ".join(json.dumps(known) for known in ARCHITECTURES)
        raise UnsupportedModelError(f"architecture = {expected}", json.dumps(name), "a later release wrote it")
    sizes = {key: value for key, value in record.items() if key != "architecture"}
    return msgspec.convert(sizes, ARCHITECTURES[name].geometry)
