"""Low-rank adapters in float32: whole models against the reference, and the elements that no adapter has."""

from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.comparison import assert_close, assert_distance
from tests.kernels.llama_model import LlamaFloat32, batch_of, check_llama, make_batch
from tests.kernels.llama_support import LLAMA_LINEAR, LORA_CASES, LlamaCase
from tests.kernels.model import Model, check_bits_after_another_batch, check_frozen, check_model, make_case
from tests.kernels.support import DROPOUT_KEY, LORA_SIZES, Sizes, run_without_compiler
from tests.reference import Array, LoraSizes
from tests.reference.llama import backward, forward
from threadloom.kernels.common.dropout import dropout_forward, dropout_of
from threadloom.kernels.common.tensors import LoraSite

LLAMAS = pytest.mark.parametrize("case", LORA_CASES.values(), ids=LORA_CASES)
MODELS = pytest.mark.parametrize("sizes", LORA_SIZES.values(), ids=LORA_SIZES)


@LLAMAS
def test_a_llama_with_adapters_equals_the_reference(case: LlamaCase) -> None:
    check_llama(case, seed=1)


@MODELS
def test_a_gpt2_with_adapters_equals_the_reference(sizes: Sizes) -> None:
    check_model(sizes, seed=1)


@LLAMAS
def test_gradients_of_adapters_follow_from_those_of_the_merged_weights(case: LlamaCase) -> None:
    """An oracle that has no adapters: with W' = W + scale A^T B, dA = scale B dW'^T and dB = scale A dW'."""
    batch, lora = make_batch(case, 2), case.sizes.lora
    assert lora is not None
    merged = {name: tensor for name, tensor in batch.tensors.items() if not name.endswith(("_a", "_b"))}
    for name in lora.columns:
        product = np.einsum("lpi,lpo->lio", batch.tensors[f"{name}_a"], batch.tensors[f"{name}_b"])
        merged[f"{name}_weight"] = merged[f"{name}_weight"] + lora.scale * product
    plain = replace(case.sizes, lora=None)
    record = forward(merged, batch.ids, plain)
    gradients, _ = backward(merged, record, batch.targets, 1.0 / case.rows)

    model = LlamaFloat32(case, batch.tensors)
    model.forward(batch.ids)
    model.backward(batch.ids, batch.targets, 1.0 / case.rows, accumulate=False)
    for name in lora.columns:
        of_weight, b = gradients[f"{name}_weight"], batch.tensors[f"{name}_b"]
        d_a = lora.scale * np.einsum("lpo,lio->lpi", b, of_weight)
        d_b = lora.scale * np.einsum("lpi,lio->lpo", batch.tensors[f"{name}_a"], of_weight)
        for key, expected in ((f"{name}_a", d_a), (f"{name}_b", d_b * lora.blocks(name, b.shape[2]))):
            assert_close(getattr(model.grads, key), expected, batch.bounds[key], key)


def test_elements_outside_the_blocks_are_never_written() -> None:
    case = LORA_CASES["queries and values, down"]
    batch, lora = make_batch(case, 3), case.sizes.lora
    assert lora is not None
    model = LlamaFloat32(case, batch.tensors)
    outside = lora.blocks("qkv", case.qkv_width) == 0
    model.grads.qkv_b[:, outside] = 7.0
    for accumulate in (False, True):
        model.forward(batch.ids)
        model.backward(batch.ids, batch.targets, 1.0, accumulate)
    assert outside.any()
    assert (model.grads.qkv_b[:, outside] == 7.0).all()


@LLAMAS
def test_two_micro_batches_add_up(case: LlamaCase) -> None:
    batch = make_batch(case, 4)
    once, twice = LlamaFloat32(case, batch.tensors), LlamaFloat32(case, batch.tensors)
    for model, times in ((once, 1), (twice, 2)):
        for number in range(times):
            model.forward(batch.ids)
            model.backward(batch.ids, batch.targets, 1.0 / times, accumulate=number > 0)
    for name, gradient in once.grads._asdict().items():
        if name in batch.gradients:
            assert_close(getattr(twice.grads, name), gradient.astype(np.float64), 2 * batch.bounds[name], name)


@LLAMAS
def test_frozen_weights_under_adapters(case: LlamaCase) -> None:
    rng = np.random.default_rng(5)
    tensors = case.sizes.random_tensors(rng)
    check_frozen(lambda frozen: LlamaFloat32(case, tensors, frozen=frozen), set(tensors), rng)


@MODELS
def test_frozen_weights_of_gpt2_under_adapters(sizes: Sizes) -> None:
    case = make_case(sizes, 6)
    rng = np.random.default_rng(6)
    check_frozen(lambda frozen: Model(sizes, case.tensors, frozen=frozen), set(case.tensors), rng)


@LLAMAS
def test_the_same_call_gives_the_same_bits(case: LlamaCase) -> None:
    rng = np.random.default_rng(7)
    tensors = case.sizes.random_tensors(rng)
    check_bits_after_another_batch(LlamaFloat32(case, tensors), LlamaFloat32(case, tensors), rng)


@LLAMAS
def test_adapters_whose_second_matrix_is_zero_change_no_bits(case: LlamaCase) -> None:
    """So a fine-tune starts from its model."""
    tensors = case.sizes.random_tensors(np.random.default_rng(8))
    for name in tensors:
        if name.endswith("_b"):
            tensors[name] = np.zeros_like(tensors[name])
    plain = replace(case, sizes=replace(case.sizes, lora=None))
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith(("_a", "_b"))}
    batch = make_batch(case, 8)
    models = LlamaFloat32(case, tensors), LlamaFloat32(plain, without)
    for model in models:
        model.forward(batch.ids)
    np.testing.assert_array_equal(*(model.acts.x for model in models))


def test_adapters_without_the_compiler() -> None:
    run_without_compiler(
        "from tests.kernels.llama_model import check_llama\n"
        "from tests.kernels.llama_support import LlamaCase\n"
        "from tests.kernels.model import check_model\n"
        "from tests.kernels.support import Sizes\n"
        "from tests.reference import LlamaSizes, LoraSizes\n"
        "lora = LoraSizes(2, 1.5, {'qkv': ((0, 16), (24, 32)), 'down': ((0, 6),)})\n"
        "sizes = LlamaSizes(vocabulary=7, layers=2, channels=6, heads=4, kv_heads=2, head_size=4, mlp_width=5,\n"
        "    lora=lora)\n"
        "check_llama(LlamaCase(sizes, sequences=2, tokens=3, context=4))\n"
        "lora = LoraSizes(2, 1.5, {'qkv': ((0, 18),), 'mlp_proj': ((0, 6),)})\n"
        "check_model(Sizes(7, 4, 2, 2, 6, 2, 3, lora))\n"
    )


def test_random_adapters_have_zeros_outside_their_blocks() -> None:
    lora = LoraSizes(2, 1.0, {"qkv": ((0, 3), (5, 7))})
    tensors = lora.random_tensors(np.random.default_rng(0), {"qkv_weight": (1, 4, 7)}, 1.0)
    assert (tensors["qkv_b"][0] != 0).sum() == 2 * 3 + 2 * 2


def masks_of(case: LlamaCase) -> dict[str, Array]:
    """Return the masks of the dropout of a case, from the kernel that `tests.kernels.common.test_dropout` checks."""
    lora, s, constants = case.sizes.lora, case.sizes, case.constants.lora
    assert lora is not None
    widths = {"qkv": s.channels, "attn_proj": case.attn_width, "gate_up": s.channels, "down": s.mlp_width}
    masks = {}
    for site, name in zip(LoraSite, LLAMA_LINEAR, strict=True):
        if name in lora.columns:
            ones, mask = np.ones((case.rows, widths[name]), np.float32), np.empty((s.layers, case.rows, widths[name]))
            for layer in range(s.layers):
                out = np.empty_like(ones)
                dropout_forward(ones, dropout_of(constants, np.full(1, DROPOUT_KEY, np.uint64), layer, site), out)
                mask[layer] = out
            masks[f"{name}_mask"] = mask.reshape(s.layers, case.sequences, case.tokens, widths[name])
    return masks


@LLAMAS
def test_dropout_of_the_input_of_adapters(case: LlamaCase) -> None:
    lora = case.sizes.lora
    assert lora is not None
    case = replace(case, sizes=replace(case.sizes, lora=replace(lora, dropout=0.25)))
    rng = np.random.default_rng(9)
    tensors, masks = case.sizes.random_tensors(rng), masks_of(case)
    batch = batch_of(case, tensors | masks, rng)
    model = LlamaFloat32(case, tensors)
    for _ in range(2):  # the mask is that of the key, not of the call
        model.forward(batch.ids)
        loss = model.backward(batch.ids, batch.targets, 1.0 / case.rows, accumulate=False)
        assert_distance(abs(loss / batch.loss - 1.0), batch.bounds["loss"], "loss")
        for name, expected in batch.gradients.items():
            if name not in masks:
                assert_close(getattr(model.grads, name), expected, batch.bounds[name], name)


@LLAMAS
def test_a_key_of_zero_drops_nothing(case: LlamaCase) -> None:
    lora = case.sizes.lora
    assert lora is not None
    tensors = case.sizes.random_tensors(np.random.default_rng(10))
    batch = make_batch(case, 10)
    models = [
        LlamaFloat32(replace(case, sizes=replace(case.sizes, lora=replace(lora, dropout=p))), tensors)
        for p in (0.0, 0.25)
    ]
    for model in models:
        model.acts.dropout_key[0] = 0
        model.forward(batch.ids)
    np.testing.assert_array_equal(*(model.acts.x for model in models))
