"""Low-rank adapters in 16 bits: whole models against the reference, and the elements that no adapter has."""

from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.bits16.formats import FORMATS, Format
from tests.kernels.bits16.llama_model import Llama16, check_llama, make_batch, scale_of
from tests.kernels.bits16.model import Model16, check_model, random_tensors, storage_of
from tests.kernels.bits16.support import on_path, paths_here
from tests.kernels.comparison import assert_distance
from tests.kernels.float32.test_lora import masks_of
from tests.kernels.llama_model import batch_of
from tests.kernels.llama_support import LORA_CASES, LlamaCase
from tests.kernels.model import check_bits_after_another_batch, check_frozen
from tests.kernels.support import LORA_SIZES, Sizes, run_without_compiler
from threadloom.kernels.compiling.jit import JIT_ENABLED

pytestmark = [
    pytest.mark.timeout(600),  # most of it to compile, on a machine that was never here before
    pytest.mark.skipif(not JIT_ENABLED, reason="the sizes are for compiled code; the last test runs without"),
]

EITHER = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
LLAMAS = pytest.mark.parametrize("case", LORA_CASES.values(), ids=LORA_CASES)
MODELS = pytest.mark.parametrize("sizes", LORA_SIZES.values(), ids=LORA_SIZES)
PATHS = paths_here()


@EITHER
@LLAMAS
def test_a_llama_with_adapters_equals_the_reference(case: LlamaCase, fmt: Format) -> None:
    for path in PATHS:
        with on_path(path):
            check_llama(case, fmt, seed=1, logits_rows=7, slice_width=32)


@EITHER
@MODELS
def test_a_gpt2_with_adapters_equals_the_reference(sizes: Sizes, fmt: Format) -> None:
    for path in PATHS:
        with on_path(path):
            check_model(sizes, fmt, seed=1, logits_rows=7, slice_width=32)


@EITHER
@LLAMAS
def test_a_gradient_of_an_adapter_that_is_a_third_too_large_is_beyond_its_bound(case: LlamaCase, fmt: Format) -> None:
    """The comparisons above can fail."""
    tensors, batch = make_batch(case, fmt, 1)
    model = Llama16(case, fmt, tensors)
    model.forward(batch.ids)
    model.backward(batch.ids, batch.targets, 1.33 * scale_of(fmt) / case.rows, accumulate=False)
    errors = model.errors(batch.gradients, scale_of(fmt))
    for name in errors:
        if name.endswith(("_a", "_b")):
            assert errors[name] > 1.2 * batch.bounds[name], name


@EITHER
def test_elements_outside_the_blocks_are_never_written(fmt: Format) -> None:
    case = LORA_CASES["queries and values, down"]
    (tensors, batch), lora = make_batch(case, fmt, 3), case.sizes.lora
    assert lora is not None
    model = Llama16(case, fmt, tensors)
    outside = lora.blocks("qkv", case.qkv_width) == 0
    model.grads.qkv_b[:, outside] = 7.0
    for accumulate in (False, True):
        model.forward(batch.ids)
        model.backward(batch.ids, batch.targets, 1.0, accumulate)
    assert outside.any()
    assert (model.grads.qkv_b[:, outside] == 7.0).all()


@EITHER
@LLAMAS
def test_frozen_weights_under_adapters(case: LlamaCase, fmt: Format) -> None:
    rng = np.random.default_rng(5)
    tensors = make_batch(case, fmt, 1)[0]
    check_frozen(lambda frozen: Llama16(case, fmt, tensors, frozen=frozen), set(tensors), rng)


@EITHER
@LLAMAS
def test_less_memory_gives_a_llama_with_adapters_the_same_bits(case: LlamaCase, fmt: Format) -> None:
    tensors, rng = make_batch(case, fmt, 1)[0], np.random.default_rng(6)
    models = Llama16(case, fmt, tensors), Llama16(case, fmt, tensors, at_end=False, small=True)
    check_bits_after_another_batch(*models, rng)


@EITHER
@MODELS
def test_less_memory_gives_a_gpt2_with_adapters_the_same_bits(sizes: Sizes, fmt: Format) -> None:
    rng = np.random.default_rng(6)
    tensors = random_tensors(sizes, rng)
    models = Model16(sizes, fmt, tensors), Model16(sizes, fmt, tensors, at_end=False, small=True)
    check_bits_after_another_batch(*models, rng)


@EITHER
@LLAMAS
def test_adapters_whose_second_matrix_is_zero_change_no_bits(case: LlamaCase, fmt: Format) -> None:
    """So a fine-tune starts from its model."""
    tensors, batch = make_batch(case, fmt, 1)
    tensors = {name: np.zeros_like(tensor) if name.endswith("_b") else tensor for name, tensor in tensors.items()}
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith(("_a", "_b"))}
    plain = replace(case, sizes=replace(case.sizes, lora=None))
    models = Llama16(case, fmt, tensors), Llama16(plain, fmt, without)
    for model in models:
        model.forward(batch.ids)
    np.testing.assert_array_equal(*(model.acts.x for model in models))


@EITHER
@LLAMAS
def test_dropout_of_the_input_of_adapters(case: LlamaCase, fmt: Format) -> None:
    """With the packed transposes, and without."""
    case, scaled = with_dropout(case), scale_of(fmt)
    tensors, masks = make_batch(case, fmt, 9)[0], masks_of(case)
    batch = batch_of(case, fmt.packed_weights(tensors) | masks, np.random.default_rng(9), storage_of(fmt, scaled))
    for small in (False, True):
        model = Llama16(case, fmt, tensors, small=small)
        for _ in range(2):  # the mask is that of the key, not of the call
            model.forward(batch.ids)
            loss = model.backward(batch.ids, batch.targets, scaled / case.rows, accumulate=False)
        assert_distance(abs(loss / batch.loss - 1.0), batch.bounds["loss"], "loss")
        expected = {name: gradient for name, gradient in batch.gradients.items() if name not in masks}
        model.check_gradients(expected, batch.bounds, scaled)


@EITHER
def test_a_key_of_zero_drops_nothing(fmt: Format) -> None:
    case = LORA_CASES["all linear"]
    tensors, batch = make_batch(case, fmt, 1)
    models = Llama16(case, fmt, tensors), Llama16(with_dropout(case), fmt, tensors)
    for model in models:
        model.acts.dropout_key[0] = 0
        model.forward(batch.ids)
        model.backward(batch.ids, batch.targets, 1.0, accumulate=False)
    np.testing.assert_array_equal(*(model.acts.x for model in models))
    np.testing.assert_array_equal(*(model.scratch.dx for model in models))


def with_dropout(case: LlamaCase) -> LlamaCase:
    assert case.sizes.lora is not None
    return replace(case, sizes=replace(case.sizes, lora=replace(case.sizes.lora, dropout=0.25)))


def test_adapters_without_the_compiler() -> None:
    run_without_compiler(
        "from tests.kernels.bits16.formats import FORMATS\n"
        "from tests.kernels.bits16.llama_model import check_llama\n"
        "from tests.kernels.bits16.model import check_model\n"
        "from tests.kernels.llama_support import LlamaCase\n"
        "from tests.kernels.support import Sizes\n"
        "from tests.reference import LlamaSizes, LoraSizes\n"
        "lora = LoraSizes(2, 1.5, {'qkv': ((0, 16), (24, 32)), 'down': ((0, 6),)})\n"
        "sizes = LlamaSizes(vocabulary=7, layers=2, channels=6, heads=4, kv_heads=2, head_size=4, mlp_width=5,\n"
        "    lora=lora)\n"
        "for fmt in FORMATS:\n"
        "    check_llama(LlamaCase(sizes, sequences=2, tokens=3, context=4), fmt)\n"
        "    lora = LoraSizes(2, 1.5, {'qkv': ((0, 18),), 'mlp_proj': ((0, 6),)})\n"
        "    check_model(Sizes(7, 4, 2, 2, 6, 2, 3, lora), fmt)\n"
    )
