"""The sizes of a model as JSON values."""

import json

import msgspec
import pytest

from threadloom.stages.models import (
    Geometry,
    Llama3Scaling,
    LlamaGeometry,
    Rotary,
    UnsupportedModelError,
    geometry_from_json,
    geometry_to_json,
)

GPT2 = Geometry(11, 6, 2, 3, 15)
LLAMA = LlamaGeometry(
    11, 6, 4, 6, 15, kv_heads=2, head_size=10, mlp_width=21, epsilon=1e-5,
    rotary=Rotary(5e5, 6, llama3=Llama3Scaling(8.0, 1.0, 4.0, 8192)), layers_without_rotary=frozenset({3, 1}),
    tied=True, qk_norm=True,
)  # fmt: skip


@pytest.mark.parametrize("geometry", [GPT2, LLAMA])
def test_a_geometry_is_read_back(geometry: Geometry) -> None:
    found = geometry_from_json(json.loads(json.dumps(geometry_to_json(geometry))))
    assert found == geometry
    assert type(found) is type(geometry)


def test_a_record_without_an_architecture_is_a_gpt2() -> None:
    record = geometry_to_json(GPT2)
    del record["architecture"]
    assert geometry_from_json(record) == GPT2


@pytest.mark.parametrize("name", ["mamba", ["gpt2"], None])
def test_an_unknown_architecture_is_refused(name: object) -> None:
    with pytest.raises(UnsupportedModelError, match="later release"):
        geometry_from_json({**geometry_to_json(GPT2), "architecture": name})


def test_missing_and_wrong_sizes_are_refused() -> None:
    record = geometry_to_json(LLAMA)
    for wrong in ({**record, "kv_heads": "2"}, {key: value for key, value in record.items() if key != "head_size"}):
        with pytest.raises(msgspec.ValidationError):
            geometry_from_json(wrong)
