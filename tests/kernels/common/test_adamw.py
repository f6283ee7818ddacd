"""AdamW against the reference, and with the same bits for every split of the arena."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests import reference
from tests.error_bounds import gamma
from tests.kernels.comparison import assert_within
from tests.kernels.support import Guarded, float32_numbers, random_shapes
from tests.reference import Array, Tensors
from threadloom.kernels.common.adamw import AdamWStep, adamw_update
from threadloom.kernels.compiling.arrays import Floats


def make_step(t: int, grad_scale: float = 1.0, weight_decay: float = 0.1) -> AdamWStep:
    return AdamWStep(
        lr=3e-3,
        beta1=0.9,
        beta2=0.99,
        eps=1e-8,
        weight_decay=weight_decay,
        bias_correction1=1.0 - 0.9**t,
        bias_correction2=1.0 - 0.99**t,
        grad_scale=grad_scale,
    )


def joined(tensors: Tensors) -> Array:
    """Return the tensors one after another."""
    return np.concatenate(list(tensors.values()))


@pytest.mark.parametrize("in_place", [False, True])
@random_shapes
@given(decayed=st.integers(0, 70), rest=st.integers(0, 70), grad_scale=st.sampled_from([1.0, 0.25]))
def test_several_updates_equal_the_reference(in_place: bool, decayed: int, rest: int, grad_scale: float) -> None:
    """The first elements decay, the others do not; the gradient is scaled first."""
    rng = np.random.default_rng([decayed, rest])
    memory = Guarded()
    size = decayed + rest
    expected = {"matrix": float32_numbers(rng, decayed), "vector": float32_numbers(rng, rest)}
    expected_m, expected_v = ({name: np.zeros_like(w) for name, w in expected.items()} for _ in range(2))
    settings = reference.AdamW(lr=3e-3, beta2=0.99, decayed=("matrix",))
    weights = memory.copy(np.concatenate(list(expected.values())))
    m, v = memory.copy(np.zeros(size)), memory.copy(np.zeros(size))
    sizes = {"matrix": np.zeros(decayed), "vector": np.zeros(rest)}  # of the first moments' terms
    steps = dict(sizes)  # bound on the sum of |update| (1 + sizes / |m|), and of the weights
    for t in range(1, 5):
        gradient = float32_numbers(rng, size)
        new_weights = weights if in_place else memory.empty(size)
        adamw_update(weights, new_weights, memory.copy(gradient), m, v, decayed, make_step(t, grad_scale))
        weights = new_weights
        grads = {"matrix": grad_scale * gradient[:decayed], "vector": grad_scale * gradient[decayed:]}
        old = expected
        expected, expected_m, expected_v = reference.adamw(expected, grads, expected_m, expected_v, t, settings)
        for name in expected:
            sizes[name] = 0.9 * sizes[name] + 0.1 * np.abs(grads[name])
            scale = np.sqrt(expected_v[name] / (1.0 - 0.99**t)) + 1e-8
            steps[name] = steps[name] + np.abs(old[name]) + 3e-3 * sizes[name] / (1.0 - 0.9**t) / scale
    # Of one element an update has 3 operations for m and 4 for v after the scaled gradient, whose square has 3 more
    # with those of the factors: a term of m carries at most 5 roundings an update, one of v 8, and one of the weights
    # those of m, half of those of v, and 8 of its own. Four updates have at most four times as many.
    for name, found, exact, bound in (
        ("m", m, expected_m, {key: gamma(20) * value for key, value in sizes.items()}),
        ("v", v, expected_v, {key: gamma(32) * value for key, value in expected_v.items()}),
        ("weights", weights, expected, {key: gamma(44) * value for key, value in steps.items()}),
    ):
        assert_within(found, joined(exact), joined(bound), name)
    memory.check()


def test_the_old_weights_are_unchanged() -> None:
    rng = np.random.default_rng(0)
    weights, gradient = (rng.standard_normal(37, np.float32) for _ in range(2))
    before = weights.copy()
    m, v, new = np.zeros(37, np.float32), np.zeros(37, np.float32), np.empty(37, np.float32)
    adamw_update(weights, new, gradient, m, v, 20, make_step(1))
    np.testing.assert_array_equal(weights, before)


def test_every_element_has_the_bits_of_ieee_arithmetic() -> None:
    """No fused multiply-add and no estimate of a division or a root: these depend on the position of an element."""
    rng = np.random.default_rng(2)
    w, g, m, v = (rng.standard_normal(1003, np.float32) for _ in range(4))
    v *= v
    step = make_step(3, grad_scale=0.3)
    beta1, beta2, one_minus1, one_minus2, clip, eps, keep, size, unbias = np.array(
        [0.9, 0.99, 1 - 0.9, 1 - 0.99, 0.3, 1e-8, 1 - 3e-3 * 0.1, 3e-3 / (1 - 0.9**3), 1 / (1 - 0.99**3) ** 0.5],
        np.float32,
    )
    clipped = g * clip
    expected_m = beta1 * m + one_minus1 * clipped
    expected_v = beta2 * v + one_minus2 * (clipped * clipped)
    expected = w * keep - size * (expected_m / (np.sqrt(expected_v) * unbias + eps))
    adamw_update(w, w, g, m, v, 1003, step)
    np.testing.assert_array_equal(m, expected_m)
    np.testing.assert_array_equal(v, expected_v)
    np.testing.assert_array_equal(w, expected)


@random_shapes
@given(
    cuts=st.lists(st.integers(0, 1003), max_size=6),
    decayed=st.integers(0, 1003),
    in_place=st.booleans(),
    shift=st.integers(0, 15),
)
def test_same_bits_for_every_split_of_the_arena(cuts: list[int], decayed: int, in_place: bool, shift: int) -> None:
    """In one call, in slices, in place or not, and at any alignment."""
    rng = np.random.default_rng(3)
    size = 1003
    step = make_step(3, grad_scale=0.3)

    def moved(values: Floats) -> Floats:
        buffer = np.zeros(size + shift, np.float32)
        buffer[shift:] = values
        return buffer[shift:]

    weights, gradient, m, v = (rng.standard_normal(size, np.float32) for _ in range(4))
    v *= v
    whole, whole_m, whole_v = np.empty_like(weights), m.copy(), v.copy()
    adamw_update(weights, whole, gradient, whole_m, whole_v, decayed, step)

    weights, gradient, m, v = moved(weights), moved(gradient), moved(m), moved(v)
    new = weights if in_place else np.full(size, np.nan, np.float32)
    ends = [0, *sorted(cuts), size]
    for i in range(len(ends) - 1):
        start, stop = ends[i], ends[i + 1]
        part = slice(start, stop)
        inside = min(max(decayed - start, 0), stop - start)
        adamw_update(weights[part], new[part], gradient[part], m[part], v[part], inside, step)
    np.testing.assert_array_equal(new, whole)
    np.testing.assert_array_equal(m, whole_m)
    np.testing.assert_array_equal(v, whole_v)
