"""The whole Llama: loss and every gradient against the reference, in every variant and over micro-batches."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.error_bounds import allowed, llama_activations, llama_tensors, with_bounds
from tests.kernels.comparison import assert_close
from tests.kernels.llama_model import LlamaFloat32, check_llama, make_batch
from tests.kernels.llama_support import CASES, LlamaCase
from tests.kernels.model import check_bits_after_another_batch, check_frozen
from tests.kernels.support import random_shapes, run_without_compiler
from tests.reference import LlamaSizes, Rotary, Tensors, llama as reference
from tests.rounding_marks import total
from threadloom.kernels.common.accumulation import model_parts, single_writer
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.float32.llama import blocks_backward, head_backward


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> LlamaCase:
    return CASES[request.param]


@pytest.mark.parametrize("logits_rows", [1, 7, 400])
def test_loss_and_every_gradient_equal_the_reference(case: LlamaCase, logits_rows: int) -> None:
    check_llama(case, logits_rows=logits_rows)


@settings(random_shapes, max_examples=12 if JIT_ENABLED else 3)
@given(
    sizes=st.builds(
        LlamaSizes,
        vocabulary=st.integers(8, 70),
        layers=st.integers(1, 2),
        channels=st.integers(8, 40),
        heads=st.sampled_from((2, 4, 6)),
        kv_heads=st.sampled_from((1, 2)),
        head_size=st.sampled_from((6, 10, 12)),
        mlp_width=st.integers(5, 50),
        epsilon=st.sampled_from((1e-6, 1e-5)),
        rotary=st.builds(Rotary, theta=st.sampled_from((1e3, 1e6)), dimensions=st.sampled_from((None, 2, 6))),
        layers_without_rotary=st.sampled_from((frozenset(), frozenset({0}))),
        **dict.fromkeys(("tied", "qkv_bias", "attn_proj_bias", "mlp_bias", "qk_norm"), st.booleans()),
    ),
    sequences=st.integers(1, 3),
    tokens=st.integers(1, 70),
    spare=st.integers(0, 5),
    logits_rows=st.integers(1, 80),
    seed=st.integers(0, 1000),
)
def test_loss_and_every_gradient_of_random_geometries(
    sizes: LlamaSizes, sequences: int, tokens: int, spare: int, logits_rows: int, seed: int
) -> None:
    check_llama(LlamaCase(sizes, sequences, tokens, tokens + spare), seed, logits_rows)


def test_every_activation_equals_the_reference(case: LlamaCase) -> None:
    batch = make_batch(case, 1)
    model = LlamaFloat32(case, batch.tensors)
    expected, bounds = with_bounds(lambda: llama_activations(reference.forward(batch.tensors, batch.ids, case.sizes)))
    model.forward(batch.ids)
    fields = {"x": "x", "qkv": "qkv", "attn": "attn", "lse": "attn_lse", "x_mid": "x_mid", "gate_up": "gate_up"}
    fields |= {"rstd1": "rstd1", "rstd2": "rstd2"}
    for layer in range(case.sizes.layers):
        for name, attribute in fields.items():
            key = f"{name} of layer {layer}"
            assert_close(getattr(model.acts, attribute)[layer], expected[key], bounds[key], key)
    model.memory.check()


def test_two_micro_batches_accumulated_equal_one_of_twice_the_size(case: LlamaCase) -> None:
    first, second = make_batch(case, 2), make_batch(case, 3)
    model = LlamaFloat32(case, first.tensors)
    scale = 0.5 / case.rows

    def both() -> Tensors:
        found = [llama_tensors(first.tensors, b.ids, b.targets, case.sizes, scale) for b in (first, second)]
        return {name: total(found[0][name], found[1][name]) for name in first.tensors}

    for batch in (first, second):
        model.forward(batch.ids)
        model.backward(batch.ids, batch.targets, scale, accumulate=batch is second)
    model.check_gradients(both(), allowed(both))


def test_the_same_call_gives_the_same_bits(case: LlamaCase) -> None:
    """The result does not depend on the contents that an earlier micro-batch left in slots and scratch."""
    rng = np.random.default_rng(5)
    tensors = case.sizes.random_tensors(rng)
    check_bits_after_another_batch(LlamaFloat32(case, tensors), LlamaFloat32(case, tensors), rng)


def test_gradients_of_frozen_tensors_are_not_computed(case: LlamaCase) -> None:
    rng = np.random.default_rng(6)
    tensors = case.sizes.random_tensors(rng)
    check_frozen(lambda frozen: LlamaFloat32(case, tensors, frozen=frozen), set(tensors), rng)


@pytest.mark.parametrize("frozen", [frozenset(), frozenset({"wte", "head"})], ids=["trained", "frozen head"])
def test_every_part_of_a_ticket_is_done(case: LlamaCase, frozen: frozenset[str]) -> None:
    """So that a successor in the lane waits for the right parts, and not for ever."""
    batch = make_batch(case, 0)
    model = LlamaFloat32(case, batch.tensors, frozen=frozen)
    model.forward(batch.ids)
    w, a, g, s, ticket = model.weights, model.acts, model.grads, model.scratch, single_writer(accumulate=False)
    parts = model_parts(case.sizes.vocabulary, case.sizes.layers)
    targets = batch.targets.reshape(-1).astype(np.int32)
    head_backward(w, a, targets, 1.0, g, s, case.constants, ticket)
    assert ticket.done_count[0] == parts - 2 * case.sizes.layers
    blocks_backward(w, a, g, s, case.sequences, case.constants, ticket)
    assert ticket.done_count[0] == parts


def test_the_model_without_the_compiler() -> None:
    run_without_compiler(
        "from tests.kernels.llama_model import check_llama\n"
        "from tests.kernels.llama_support import LlamaCase\n"
        "from tests.reference import LlamaSizes, Rotary\n"
        "sizes = LlamaSizes(vocabulary=7, layers=2, channels=6, heads=4, kv_heads=2, head_size=4, mlp_width=5,\n"
        "    rotary=Rotary(dimensions=2), layers_without_rotary=frozenset({1}), qkv_bias=True, qk_norm=True)\n"
        "check_llama(LlamaCase(sizes, sequences=2, tokens=3, context=4))\n"
    )
