"""Generation with weights in bfloat16 and in blocks of 8 bits, against the reference with the rounded weights.

Correct logits differ from the reference's by roundings of float32 and by those of the cached keys and values. The
bounds are of more: of roundings of all activations to bfloat16.
"""

from dataclasses import replace

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import IN_BF16, with_bounds
from tests.kernels.comparison import assert_close
from tests.kernels.support import alone
from tests.reference import Tensors
from tests.stages.support import LLAMA, tiny
from tests.stages.training.oracle import Oracle, oracle_of
from threadloom.kernels.float32.blocks8 import (
    BLOCK,
    LARGEST_ERROR,
    blocks8_from_float32,
    blocks8_shape,
    copy_blocks8_column,
)
from threadloom.kernels.float32.one_token import write_logits
from threadloom.kernels.simd import DotPath, dot_path, round_to_bf16, upcast_bf16
from threadloom.pipeline import Arena
from threadloom.stages.inference import DecodePrecision, SamplingSettings, generate, stored_weights
from threadloom.stages.inference.decoder import Decoder, GenerationError
from threadloom.stages.inference.stored_weights import CACHED_BYTES, resolved
from threadloom.stages.layouts import ModelWeights, as_weights, layout_of
from threadloom.stages.models import Geometry, parameter_shapes

pytestmark = pytest.mark.timeout(300)  # includes compiling with an empty cache

INT8, BF16 = DecodePrecision.INT8, DecodePrecision.BF16
GPT2 = ("model.channels=36", "model.vocab_size=41", "model.context=13")


def read_back(rows: np.ndarray) -> np.ndarray:
    """Return the weights (O, I) that their blocks stand for."""
    blocks = in_blocks(np.ascontiguousarray(rows, np.float32))
    found = np.empty(rows.shape, np.float32)
    for number, out in enumerate(found):
        copy_blocks8_column(blocks, number, out)
    return found


def in_blocks(rows: np.ndarray) -> np.ndarray:
    blocks = np.empty(blocks8_shape(*rows.shape[::-1]), np.int8)
    blocks8_from_float32(rows, blocks)
    return blocks


def products(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the products of the weights in blocks (O, I) and a vector."""
    found = np.full(len(rows) + 1, 7.0, np.float32)
    write_logits(in_blocks(rows), x, found[:-1], alone())
    assert found[-1] == 7.0
    return found[:-1]


def rounded(tensor: np.ndarray, precision: DecodePrecision) -> np.ndarray:
    if precision is BF16:
        return upcast_bf16(round_to_bf16(tensor.astype(np.float32)))
    if tensor.ndim == 2:
        return read_back(tensor)
    return np.stack([read_back(layer.T).T for layer in tensor])


def model_of(oracle: Oracle, geometry: Geometry, precision: DecodePrecision) -> tuple[ModelWeights, Tensors]:
    """Return the weights that are stored, and the rounded ones for the reference."""
    tensors = oracle.random_tensors(np.random.default_rng(3), 0.3)
    first = Arena(parameter_shapes(geometry))
    for name, tensor in tensors.items():
        first[name][...] = tensor
    stored = stored_weights(as_weights(geometry, first), geometry, precision)
    arena = Arena(parameter_shapes(geometry))
    for name in tensors:
        matrix = name in layout_of(geometry).decode_matrices
        arena[name][...] = rounded(first[name], precision) if matrix else first[name]
    return stored, {name: arena[name].astype(np.float64) for name in tensors}


@pytest.mark.parametrize("precision", [BF16, INT8])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "tied llama"])
def test_logits_at_every_position(precision: DecodePrecision, architecture: str) -> None:
    tied = ("model.tied=true", "model.qk_norm=false", "model.kv_heads=3")
    overrides = () if architecture == "llama" else tied
    config = tiny(*GPT2) if architecture == "gpt2" else tiny(*overrides, base=LLAMA)
    geometry, oracle = config.model.geometry(), oracle_of(config)
    stored, tensors = model_of(oracle, geometry, precision)
    ids = np.random.default_rng(1).integers(0, geometry.vocabulary, geometry.context)

    def logits() -> Tensors:
        return {str(position): row for position, row in enumerate(oracle.forward(tensors, ids[None]).logits[0])}

    expected, bounds = with_bounds(logits, IN_BF16)
    for prompt in (1, 4, geometry.context):
        decoder = Decoder(stored, geometry)
        found = decoder.prefill(ids[:prompt])
        assert_close(found, expected[str(prompt - 1)], bounds[str(prompt - 1)], f"position {prompt - 1}")
        for position in range(prompt, geometry.context):
            found = decoder.append(int(ids[position]))
            assert_close(found, expected[str(position)], bounds[str(position)], f"position {position}")


@pytest.mark.parametrize("precision", [BF16, INT8])
def test_without_the_instructions_a_prompt_is_processed_in_float32(precision: DecodePrecision) -> None:
    """The logits after it are those of the rounded weights, within the roundings of float32."""
    config = tiny(*GPT2)
    geometry, oracle = config.model.geometry(), oracle_of(config)
    stored, tensors = model_of(oracle, geometry, precision)
    ids = np.random.default_rng(1).integers(0, geometry.vocabulary, geometry.context)

    def logits() -> Tensors:
        return {"last": oracle.forward(tensors, ids[None]).logits[0, -1]}

    expected, bounds = with_bounds(logits)
    with dot_path(DotPath.FLOAT32):
        found = Decoder(stored, geometry).prefill(ids)
    assert_close(found, expected["last"], bounds["last"], "the last position")


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 100])
def test_a_weight_in_blocks_is_within_its_bound(columns: int) -> None:
    rng = np.random.default_rng(columns)
    rows = (rng.normal(size=(7, columns)) * 10.0 ** rng.integers(-30, 30, (7, 1))).astype(np.float32)
    rows[3] = 0.0
    error = np.abs(read_back(rows).astype(np.float64) - rows)
    for first in range(0, columns, BLOCK):
        largest = np.abs(rows[:, first : first + BLOCK]).max(axis=1).astype(np.float64)
        assert np.all(error[:, first : first + BLOCK] <= largest[:, None] * (LARGEST_ERROR * (1 + 1e-6)))


@pytest.mark.parametrize("columns", [1, 5, 32, 77, 96])
@pytest.mark.parametrize("outputs", [1, 9, 32, 70])
def test_products_with_blocks(columns: int, outputs: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(outputs, columns)).astype(np.float32)
    x = rng.normal(size=columns).astype(np.float32)
    weights, exact = read_back(rows).astype(np.float64), x.astype(np.float64)
    bounds = (columns + 3) * 2.0**-24 * (np.abs(weights) @ np.abs(exact)) * 1.01
    assert (np.abs(products(rows, x) - weights @ exact) <= bounds).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [3, 37])
def test_a_weight_that_is_not_finite_shows(bad: float, column: int) -> None:
    rows = np.ones((2, 40), np.float32)
    rows[1, column] = bad
    assert np.isfinite(products(rows, np.ones(40, np.float32))).tolist() == [True, False]


def test_auto_is_float32_for_small_models_and_bf16_for_others() -> None:
    geometry = tiny(*GPT2).model.geometry()
    small = as_weights(geometry, Arena(parameter_shapes(geometry)))
    assert resolved(DecodePrecision.AUTO, geometry) is DecodePrecision.FLOAT32
    assert stored_weights(small, geometry, DecodePrecision.AUTO) is small
    rows = CACHED_BYTES // 4 // geometry.channels - 12 * geometry.layers * geometry.channels  # of all matrices
    assert resolved(DecodePrecision.AUTO, replace(geometry, vocabulary=rows)) is DecodePrecision.FLOAT32
    assert resolved(DecodePrecision.AUTO, replace(geometry, vocabulary=rows + 1)) is BF16
    assert resolved(INT8, geometry) is INT8


@pytest.mark.parametrize("precision", [BF16, INT8])
def test_converted_weights_have_memory_of_their_own(precision: DecodePrecision) -> None:
    """A view of one vector would keep the allocation of all float32 weights."""
    geometry = tiny(base=LLAMA).model.geometry()
    arena = Arena(parameter_shapes(geometry))
    stored = stored_weights(as_weights(geometry, arena), geometry, precision)
    for name, tensor in stored._asdict().items():
        assert not np.shares_memory(tensor, arena.flat), name


def test_a_seed_gives_the_same_text_in_every_format() -> None:
    config = tiny(*GPT2)
    geometry = config.model.geometry()
    for precision in (BF16, INT8):
        stored, _ = model_of(oracle_of(config), geometry, precision)
        texts = [list(generate(stored, geometry, [1], 30, SamplingSettings(), 5)) for _ in range(2)]
        assert texts[0] == texts[1]
        assert len(texts[0]) == 30  # more than the context


def test_stored_weights_of_another_model_are_refused() -> None:
    config = tiny(*GPT2)
    geometry = config.model.geometry()
    stored, _ = model_of(oracle_of(config), geometry, INT8)
    for name, wrong in (("wte", stored.wte[:-1]), ("qkv_weight", stored.qkv_weight[:, :, :-1].copy())):
        with pytest.raises(
            GenerationError, match=f"the weights' {name}: expected the form of .* that stored_weights gives"
        ):
            Decoder(stored._replace(**{name: wrong}), geometry)
    with pytest.raises(GenerationError, match="the weights' qkv_bias"):
        Decoder(stored._replace(qkv_bias=stored.qkv_bias.astype(np.float64)), geometry)


def test_the_reference_is_that_of_the_rounded_weights() -> None:
    """The rounding matters: the logits of the weights before it differ by more than the bounds of float32."""
    config = tiny(*GPT2)
    geometry, oracle = config.model.geometry(), oracle_of(config)
    exact = oracle.random_tensors(np.random.default_rng(3), 0.3)
    _, tensors = model_of(oracle, geometry, INT8)
    ids = np.arange(geometry.context)[None]
    first, second = (reference.forward(w, ids, geometry.heads).logits for w in (exact, tensors))
    assert np.linalg.norm(first - second) > 1e-4 * np.linalg.norm(first)
