"""Models that are converted to a number format of generation as they are opened: bits, memory, and further formats."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.stages.support import LLAMA as LLAMA_CONFIG, tiny
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import TrainingState, save_checkpoint
from threadloom.stages.checkpoint.huggingface import write_model
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.inference import DecodePrecision, Model, ModelError
from threadloom.stages.inference.stored_weights import stored_bytes
from threadloom.stages.models import Geometry, LlamaGeometry, architecture_of, parameter_shapes
from threadloom.stages.storage.tensor_reader import BLOCK

FORMATS = (DecodePrecision.BF16, DecodePrecision.INT8)
GPT2 = Geometry(vocabulary=301, context=8, layers=2, heads=3, channels=75)
LLAMA = LlamaGeometry(
    vocabulary=301, context=8, layers=2, heads=6, channels=75, kv_heads=3, head_size=10, mlp_width=133
)
LARGE = Geometry(vocabulary=300, context=8, layers=6, heads=4, channels=288)
"""Its matrices take 25 MB in float32, no one of them more than 1.4."""


def random_weights(geometry: Geometry) -> Arena:
    arena, rng = Arena(parameter_shapes(geometry)), np.random.default_rng(0)
    for tensor in arena.values():
        tensor[...] = rng.standard_normal(tensor.shape, np.float32)
    return arena


def written(folder: Path, geometry: Geometry) -> Path:
    """Write a model with random weights and a tokenizer of bytes."""
    folder.mkdir()
    write_model(folder, random_weights(geometry), geometry)
    BytesTokenizer().save(folder / "tokenizer.json")
    return folder


def bits(model: Model) -> dict[str, tuple[str, bytes]]:
    return {name: (str(array.dtype), array.tobytes()) for name, array in model.weights._asdict().items()}


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("geometry", [GPT2, LLAMA, replace(LLAMA, tied=True)], ids=["gpt2", "llama", "tied llama"])
def test_the_bits_are_those_of_a_model_that_is_converted_later(
    tmp_path: Path, geometry: Geometry, precision: DecodePrecision
) -> None:
    folder = written(tmp_path / "model", geometry)
    opened = Model.open(folder, precision=precision)
    assert bits(opened) == bits(Model.open(folder).stored_as(precision))
    if architecture_of(geometry).tied(geometry):
        assert opened.weights.head is opened.weights.wte  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("config", [tiny(), tiny(base=LLAMA_CONFIG)], ids=["gpt2", "a llama of no published family"])
def test_a_checkpoint_is_opened_in_a_format(tmp_path: Path, config: ResolvedConfig, precision: DecodePrecision) -> None:
    geometry = config.geometry()
    tokenizer = tmp_path / "tokenizer.json"
    BytesTokenizer().save(tokenizer)
    weights = {1: random_weights(geometry)}
    folder = save_checkpoint(tmp_path, TrainingState(1, 0, weights, {}, {}, geometry), tokenizer, 1)
    opened = Model.open(folder, precision=precision)
    assert bits(opened) == bits(Model.open(folder).stored_as(precision))
    assert opened.step == 1


@pytest.mark.parametrize("precision", FORMATS)
def test_opening_takes_the_memory_of_the_format_and_of_one_matrix(tmp_path: Path, precision: DecodePrecision) -> None:
    folder = written(tmp_path / "model", LARGE)
    Model.open(folder, precision=precision)  # loads what is loaded once
    tracemalloc.start()
    try:
        model = Model.open(folder, precision=precision)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    kept = sum(array.nbytes for array in {id(array): array for array in model.weights}.values())
    largest = 4 * 4 * LARGE.channels**2
    assert stored_bytes(LARGE, precision) <= kept + 2 * largest
    assert peak <= stored_bytes(LARGE, precision) + BLOCK + (1 << 19)  # what is read at a time, and Python's objects
    assert peak < 0.85 * 4 * sum(np.prod(shape) for shape in parameter_shapes(LARGE).values())


def test_a_model_in_another_format_is_not_converted_again(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", tiny().model.geometry())
    whole = Model.open(folder)
    assert whole.stored_as(DecodePrecision.AUTO) is whole
    stored = whole.stored_as(DecodePrecision.INT8)
    assert stored.stored_as(DecodePrecision.INT8) is stored
    for other in (DecodePrecision.BF16, DecodePrecision.FLOAT32, DecodePrecision.AUTO):
        with pytest.raises(ModelError, match=r"expected weights in float32, .* got weights in int8"):
            stored.stored_as(other)
