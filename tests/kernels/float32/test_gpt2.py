"""The whole model: loss and every gradient against the reference, in odd geometries and over micro-batches."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests import reference
from tests.error_bounds import activations, allowed, model_bounds, model_tensors, with_bounds
from tests.kernels.comparison import assert_close, assert_distance
from tests.kernels.model import Model, check_bits_after_another_batch, check_frozen, check_model
from tests.kernels.support import MODEL_SIZES, Sizes, flat_ids, random_shapes, run_without_compiler
from tests.reference import Ids, Tensors
from tests.rounding_marks import total
from threadloom.kernels.common.accumulation import single_writer
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.float32.gpt2 import head_backward


@pytest.fixture(params=list(MODEL_SIZES))
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return MODEL_SIZES[request.param]


@pytest.mark.parametrize("logits_rows", [1, 7, 400])
def test_loss_and_every_gradient_equal_the_reference(sizes: Sizes, logits_rows: int) -> None:
    check_model(sizes, logits_rows=logits_rows)


@settings(random_shapes, max_examples=15 if JIT_ENABLED else 5)
@given(
    vocabulary=st.integers(8, 70),
    spare=st.integers(0, 5),
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_size=st.integers(8, 13),
    sequences=st.integers(1, 3),
    tokens=st.integers(1, 70),
    logits_rows=st.integers(1, 80),
    seed=st.integers(0, 1000),
)
def test_loss_and_every_gradient_of_random_geometries(
    vocabulary: int,
    spare: int,
    layers: int,
    heads: int,
    head_size: int,
    sequences: int,
    tokens: int,
    logits_rows: int,
    seed: int,
) -> None:
    sizes = Sizes(vocabulary, tokens + spare, layers, heads, heads * head_size, sequences, tokens)
    check_model(sizes, seed, logits_rows)


def test_every_activation_equals_the_reference(sizes: Sizes) -> None:
    rng = np.random.default_rng(1)
    model = Model(sizes, sizes.tensors(rng))
    ids = sizes.ids(rng)

    def results() -> Tensors:
        return activations(reference.forward(model.tensors, ids, sizes.heads))

    expected, bounds = with_bounds(results)
    model.forward(ids)
    fields = {"x": "x", "qkv": "qkv", "attn": "attn", "lse": "attn_lse", "x_mid": "x_mid", "fc": "fc"}
    fields |= {f"{name}{norm}": f"ln{norm}_{name}" for name in ("mean", "rstd") for norm in (1, 2)}
    for layer in range(sizes.layers):
        for name, attribute in fields.items():
            key = f"{name} of layer {layer}"
            assert_close(getattr(model.acts, attribute)[layer], expected[key], bounds[key], key)
    model.memory.check()


def test_two_micro_batches_accumulated_equal_one_of_twice_the_size(sizes: Sizes) -> None:
    rng = np.random.default_rng(2)
    model = Model(sizes, sizes.tensors(rng))
    ids = [sizes.ids(rng), sizes.ids(rng)]
    targets = [sizes.ids(rng), sizes.ids(rng)]
    scale = 0.5 / sizes.rows
    expected_loss, expected = reference.loss_and_gradients(
        model.tensors, np.concatenate(ids), np.concatenate(targets), sizes.heads, scale
    )
    bounds = allowed(lambda: both_tensors(model.tensors, ids, targets, sizes.heads, scale))
    loss = 0.0
    for i in range(2):
        model.forward(ids[i])
        loss += model.backward(ids[i], targets[i], scale, accumulate=i > 0)
    assert_distance(abs(loss / expected_loss - 1.0), bounds["loss"], "loss")
    model.check_gradients(expected, bounds)


def both_tensors(weights: Tensors, ids: list[Ids], targets: list[Ids], heads: int, scale: float) -> Tensors:
    """Return the sum of the loss and the gradients of two micro-batches."""
    first, second = (model_tensors(weights, *one, heads, scale) for one in zip(ids, targets, strict=True))
    return {name: total(first[name], second[name]) for name in ("loss", *weights)}


def test_the_head_leaves_the_gradient_of_its_input(sizes: Sizes) -> None:
    rng = np.random.default_rng(3)
    model = Model(sizes, sizes.tensors(rng))
    ids, targets = sizes.ids(rng), sizes.ids(rng)
    record = reference.forward(model.tensors, ids, sizes.heads)
    expected, d_x_final = reference.backward(model.tensors, record, targets, scale=0.25)
    model.acts.x[sizes.layers] = record.x_final.reshape(sizes.rows, sizes.channels)
    x_final = model.acts.x[sizes.layers].copy()
    w, a, g, s = model.weights, model.acts, model.grads, model.scratch
    head_backward(w, a, flat_ids(targets), 0.25, g, s, sizes.constants, single_writer(accumulate=False))
    np.testing.assert_array_equal(model.acts.x[sizes.layers], x_final)
    # These bounds include the errors of forward, which this test does not make.
    bounds = model_bounds(model.tensors, ids, targets, sizes.heads, 0.25)
    assert_close(model.scratch.dx, d_x_final, bounds["d_x_final"], "dx")
    for name in ("lnf_weight", "lnf_bias"):
        assert_close(getattr(model.grads, name), expected[name], bounds[name], name)


def test_the_scale_multiplies_the_gradients_and_not_the_loss() -> None:
    rng = np.random.default_rng(4)
    sizes = MODEL_SIZES["odd"]
    model = Model(sizes, sizes.tensors(rng))
    ids, targets = sizes.ids(rng), sizes.ids(rng)
    expected_loss, expected = reference.loss_and_gradients(model.tensors, ids, targets, sizes.heads, scale=3.0)
    bounds = model_bounds(model.tensors, ids, targets, sizes.heads, 3.0)
    model.forward(ids)
    loss = model.backward(ids, targets, 3.0, accumulate=False)
    assert_distance(abs(loss / expected_loss - 1.0), bounds["loss"], "loss")
    model.check_gradients(expected, bounds)


def test_the_same_call_gives_the_same_bits(sizes: Sizes) -> None:
    """The result does not depend on the contents that an earlier micro-batch left in slots and scratch."""
    rng = np.random.default_rng(5)
    tensors = sizes.tensors(rng)
    fresh, used = Model(sizes, tensors), Model(sizes, tensors)
    check_bits_after_another_batch(fresh, used, rng)


def test_gradients_of_frozen_tensors_are_not_computed() -> None:
    sizes, rng = MODEL_SIZES["odd"], np.random.default_rng(7)
    tensors = sizes.tensors(rng)
    check_frozen(lambda frozen: Model(sizes, tensors, frozen=frozen), set(tensors), rng)


def test_large_logits_do_not_overflow() -> None:
    sizes = Sizes(vocabulary=19, context=4, layers=1, heads=1, channels=8, sequences=2, tokens=4)
    rng = np.random.default_rng(6)
    tensors = sizes.tensors(rng)
    tensors["lnf_weight"] *= 4096.0
    model = Model(sizes, tensors)
    ids, targets = sizes.ids(rng), sizes.ids(rng)
    expected_loss, _ = reference.loss_and_gradients(tensors, ids, targets, sizes.heads)
    bounds = model_bounds(tensors, ids, targets, sizes.heads, 1.0)
    model.forward(ids)
    loss = model.backward(ids, targets, 1.0, accumulate=False)
    assert_distance(abs(loss / expected_loss - 1.0), bounds["loss"], "loss")
    assert np.isfinite(model.grads.wte).all()


def test_the_model_without_the_compiler() -> None:
    run_without_compiler(
        "from tests.kernels.model import check_model\n"
        "from tests.kernels.support import Sizes\n"
        "check_model(Sizes(vocabulary=7, context=4, layers=2, heads=2, channels=6, sequences=2, tokens=3))\n"
    )
