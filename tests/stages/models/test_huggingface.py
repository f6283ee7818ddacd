"""Names, shapes and configurations in Hugging Face's layout."""

import json

import numpy as np
import pytest

from threadloom.pipeline import Arena
from threadloom.stages.models import (
    ARCHITECTURES,
    Geometry,
    UnsupportedModelError,
    architecture_of,
    geometry_of_huggingface,
    huggingface_shapes,
    huggingface_views,
    parameter_shapes,
)

GEOMETRY = Geometry(vocabulary=37, context=11, layers=3, heads=3, channels=12)
LAYOUT = architecture_of(GEOMETRY).huggingface


def test_names_cover_every_parameter_once() -> None:
    weights = Arena(parameter_shapes(GEOMETRY))
    views = huggingface_views(weights, GEOMETRY)
    assert {name: view.shape for name, view in views.items()} == huggingface_shapes(GEOMETRY)
    assert list(views) == list(huggingface_shapes(GEOMETRY))
    assert sum(view.size for view in views.values()) == sum(view.size for view in weights.values())
    for view in views.values():
        assert np.shares_memory(view, weights.flat)


def test_a_configuration_describes_its_geometry() -> None:
    config = LAYOUT.config(GEOMETRY, end_of_text=None)
    assert config["eos_token_id"] is None
    assert geometry_of_huggingface(json.dumps(config).encode()) == GEOMETRY


def test_the_end_of_text_token_is_in_the_configuration() -> None:
    config = LAYOUT.config(GEOMETRY, end_of_text=36)
    assert config["bos_token_id"] == config["eos_token_id"] == 36


def test_an_unknown_architecture_is_rejected_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r'expected model_type = "gpt2" or "llama" or .*, got "gpt_neox"'):
        geometry_of_huggingface(b'{"model_type": "gpt_neox", "hidden_size": 8}')


def test_architectures_are_registered_under_their_names() -> None:
    assert all(architecture.name == name for name, architecture in ARCHITECTURES.items())
    assert Geometry.architecture in ARCHITECTURES
