"""Dropout in the blocks: whole models against float64 with the masks of the reference, in every number format."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import IN_FLOAT32, Storage, model_bounds
from tests.kernels.bits16.formats import FORMATS, Format
from tests.kernels.bits16.llama_model import Llama16, random_tensors as llama_tensors, scale_of
from tests.kernels.bits16.model import Model16, random_tensors, storage_of
from tests.kernels.comparison import assert_close, assert_distance
from tests.kernels.llama_model import LlamaFloat32, batch_of
from tests.kernels.llama_support import CASES, LORA_CASES, LlamaCase
from tests.kernels.model import MicroBatchModel, Model, check_bits_after_another_batch, check_frozen
from tests.kernels.support import DROPOUT_KEY, LORA_SIZES, MODEL_SIZES, Sizes, run_without_compiler
from tests.reference import Ids, Tensors, dropout
from threadloom.kernels.common.tensors import NO_RATES, DropoutRates
from threadloom.kernels.compiling.jit import JIT_ENABLED

compiled = pytest.mark.skipif(not JIT_ENABLED, reason="the sizes are for compiled code; the last test runs without")
pytestmark = pytest.mark.timeout(600)  # most of it to compile, on a machine that was never here before

RATES = DropoutRates(residual=0.25, attention=0.2)
LONG = "more than a tile of queries"
GPT2 = {"odd": MODEL_SIZES["odd"], LONG: MODEL_SIZES[LONG], "adapters": LORA_SIZES["all linear"]}
LLAMA = {
    "grouped heads": CASES["grouped heads"],
    "all biases, tied": CASES["all biases, tied"],
    LONG: CASES[LONG],
    "adapters": LORA_CASES["all linear"],
}
EVERY = pytest.mark.parametrize("fmt", [None, *FORMATS], ids=lambda fmt: fmt.name if fmt else "float32")
EITHER = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


Build = Callable[..., MicroBatchModel]
"""Returns a model with the kernels; its parameters are those of `Model` and the like."""


class Expected(NamedTuple):
    """A micro-batch, the results of the reference with the masks, and how far the kernels' may be from them."""

    ids: Ids
    targets: Ids
    loss: float
    gradients: Tensors
    bounds: dict[str, float]


def masks(rates: DropoutRates, layers: int, heads: int, shape: tuple[int, int, int]) -> Tensors:
    """Return the masks of a model with outputs of a shape (B, T, C), as tensors of the reference."""
    of_heads = shape[0], heads, shape[1]
    return {
        "residual_mask": dropout.residual_masks(rates.residual, DROPOUT_KEY, layers, shape),
        "attention_mask": dropout.attention_masks(rates.attention, DROPOUT_KEY, layers, of_heads),
    }


def scaled(fmt: Format | None) -> float:
    """Return the factor of the gradients."""
    return scale_of(fmt) if fmt else 1.0


def storage(fmt: Format | None) -> Storage:
    return storage_of(fmt, scale_of(fmt)) if fmt else IN_FLOAT32


def gpt2(sizes: Sizes, fmt: Format | None) -> tuple[Expected, Build]:
    """Return the results of a random GPT-2, and a function that returns its kernels."""
    rng, s = np.random.default_rng(11), sizes
    tensors = random_tensors(s, rng)
    read = (fmt.packed_weights(tensors) if fmt else tensors) | masks(
        s.rates, s.layers, s.heads, (s.sequences, s.tokens, s.channels)
    )
    ids, targets, scale = s.ids(rng), s.targets(rng), 1.0 / s.rows
    record = reference.forward(read, ids, s.heads, s.lora)
    loss = float(reference.cross_entropy_forward(record.logits, targets).sum())
    gradients, _ = reference.backward(read, record, targets, scale)
    bounds = model_bounds(read, ids, targets, s.heads, scale, storage(fmt), s.lora)

    def build(**settings: Any) -> MicroBatchModel:
        return Model16(s, fmt, tensors, **settings) if fmt else Model(s, tensors, **settings)

    return Expected(ids, targets, loss, gradients, bounds), build


def llama(case: LlamaCase, fmt: Format | None) -> tuple[Expected, Build]:
    """Return the results of a random Llama, and a function that returns its kernels."""
    rng, s = np.random.default_rng(12), case.sizes
    tensors = llama_tensors(case, rng)
    read = (fmt.packed_weights(tensors) if fmt else tensors) | masks(
        case.rates, s.layers, s.heads, (case.sequences, case.tokens, s.channels)
    )
    batch = batch_of(case, read, rng, storage(fmt))

    def build(**settings: Any) -> MicroBatchModel:
        return Llama16(case, fmt, tensors, **settings) if fmt else LlamaFloat32(case, tensors, **settings)

    return Expected(batch.ids, batch.targets, batch.loss, batch.gradients, batch.bounds), build


def check(expected: Expected, model: MicroBatchModel, factor: float) -> None:
    """Compare loss and gradients; the second of two equal micro-batches adds as much as the first one wrote."""
    e, rows = expected, expected.ids.size
    for number in range(2):  # the masks are those of the key, not of the call
        model.forward(e.ids)
        loss = model.backward(e.ids, e.targets, factor / rows / 2, accumulate=number > 0)
        assert_distance(abs(loss / e.loss - 1.0), e.bounds["loss"], "loss")
    for name, gradient in e.gradients.items():
        if not name.endswith("_mask"):
            assert_close(getattr(model.grads, name) / factor, gradient, e.bounds[name], name)


@compiled
@EVERY
@pytest.mark.parametrize("sizes", GPT2.values(), ids=GPT2)
def test_a_gpt2_equals_the_reference_with_the_same_masks(sizes: Sizes, fmt: Format | None) -> None:
    expected, build = gpt2(replace(sizes, rates=RATES), fmt)
    check(expected, build(), scaled(fmt))


@compiled
@EVERY
@pytest.mark.parametrize("case", LLAMA.values(), ids=LLAMA)
def test_a_llama_equals_the_reference_with_the_same_masks(case: LlamaCase, fmt: Format | None) -> None:
    expected, build = llama(replace(case, rates=RATES), fmt)
    check(expected, build(), scaled(fmt))


def biased(fmt: Format | None, rates: DropoutRates = RATES) -> list[tuple[Expected, Build]]:
    """Return one model of each architecture, with biases in all layers."""
    gpt2_sizes, llama_case = GPT2["odd"], LLAMA["all biases, tied"]
    return [gpt2(replace(gpt2_sizes, rates=rates), fmt), llama(replace(llama_case, rates=rates), fmt)]


@compiled
@EITHER
def test_less_memory_gives_the_same_bits(fmt: Format) -> None:
    for _, build in biased(fmt):
        check_bits_after_another_batch(build(), build(at_end=False, small=True), np.random.default_rng(13))


def with_frozen(build: Build, frozen: frozenset[str]) -> MicroBatchModel:
    return build(frozen=frozen)


@compiled
@EVERY
def test_frozen_tensors(fmt: Format | None) -> None:
    for expected, build in biased(fmt):
        names = {name for name in expected.gradients if name.endswith(("_bias", "norm1_weight", "ln1_weight"))}
        check_frozen(partial(with_frozen, build), names, np.random.default_rng(14))


@compiled
@EVERY
def test_a_key_of_zero_drops_nothing(fmt: Format | None) -> None:
    for (expected, build), (_, plain) in zip(biased(fmt), biased(fmt, NO_RATES), strict=True):
        models = build(), plain()
        for model in models:
            model.acts.dropout_key[0] = 0
            model.forward(expected.ids)
            model.backward(expected.ids, expected.targets, 1.0, accumulate=False)
        for name, gradient in models[0].grads._asdict().items():
            np.testing.assert_array_equal(gradient, getattr(models[1].grads, name), name)


def test_without_the_compiler() -> None:
    run_without_compiler(
        "from tests.kernels.bits16.formats import FORMATS\n"
        "from tests.kernels.llama_support import LlamaCase\n"
        "from tests.kernels.support import Sizes\n"
        "from tests.kernels.test_dropout import RATES, check, gpt2, llama, scaled\n"
        "from tests.reference import LlamaSizes\n"
        "sizes = LlamaSizes(vocabulary=7, layers=2, channels=6, heads=4, kv_heads=2, head_size=4, mlp_width=5,\n"
        "    mlp_bias=True)\n"
        "for fmt in (None, *FORMATS):\n"
        "    models = (gpt2(Sizes(7, 4, 2, 2, 6, 2, 3, rates=RATES), fmt),\n"
        "        llama(LlamaCase(sizes, sequences=2, tokens=3, context=4, rates=RATES), fmt))\n"
        "    for expected, build in models:\n"
        "        check(expected, build(), scaled(fmt))\n"
    )
