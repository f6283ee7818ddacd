"""The reference Llama, compared with finite differences and, in float64, with Hugging Face's models of the family."""

import math
from functools import cache, partial

import numpy as np
import pytest

from tests import reference
from tests.central_differences import check_backward, check_gradient, float64_bounds
from tests.error_bounds import FLOAT64, gamma, llama_tensors
from tests.hugging_face_llama import Family, compute_in_float64, hugging_face_model, load, parts
from tests.kernels.comparison import assert_within
from tests.reference import Array, Ids, Llama3Scaling, LlamaSizes, Rotary, Tensors, llama
from tests.rounding_marks import product

SCALED = Rotary(theta=100.0, llama3=Llama3Scaling(4.0, 1.0, 3.0, 40))
"""Of the five frequencies of a head of 10 dimensions one is kept, two are blended and two are divided."""

MODELS = {
    "plain": LlamaSizes(vocabulary=13, layers=2, channels=9, heads=3, kv_heads=3, head_size=4, mlp_width=7),
    "grouped, tied": LlamaSizes(
        vocabulary=11, layers=3, channels=7, heads=6, kv_heads=2, head_size=2, mlp_width=5, tied=True, epsilon=1e-2,
        layers_without_rotary=frozenset({1}),
    ),
    "every bias, norm of heads": LlamaSizes(
        vocabulary=7, layers=2, channels=5, heads=4, kv_heads=1, head_size=6, mlp_width=9, qk_norm=True,
        rotary=Rotary(theta=10.0, dimensions=4, linear_factor=1.7), qkv_bias=True, attn_proj_bias=True, mlp_bias=True,
    ),
    "scaled by wavelength": LlamaSizes(
        vocabulary=5, layers=1, channels=8, heads=2, kv_heads=1, head_size=10, mlp_width=11, tied=True, qk_norm=True,
        rotary=SCALED, qkv_bias=True,
    ),
}  # fmt: skip
BATCHES = {
    "plain": (3, 5),
    "grouped, tied": (2, 6),
    "every bias, norm of heads": (2, 4),
    "scaled by wavelength": (1, 7),
}
Case = tuple[LlamaSizes, Tensors, Ids, Ids]


def make_case(name: str) -> Case:
    """Return sizes, weights, ids and targets."""
    sizes = MODELS[name]
    rng = np.random.default_rng(list(name.encode()))
    ids, targets = rng.integers(0, sizes.vocabulary, (2, *BATCHES[name]))
    return sizes, sizes.random_tensors(rng), ids, targets


@cache
def model_errors(name: str) -> dict[str, float]:
    """Return how far the results of a case, of the sum of the losses, are off by rounding in float64."""
    sizes, weights, ids, targets = make_case(name)
    return float64_bounds(lambda: llama_tensors(weights, ids, targets, sizes, 1.0))


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model, sizes in MODELS.items() for name in sizes.shapes()]
)
def test_gradient_of_every_tensor_is_the_slope_of_the_loss(model: str, name: str) -> None:
    sizes, weights, ids, targets = make_case(model)
    scale, errors = 0.37, model_errors(model)
    grads, _ = llama.backward(weights, llama.forward(weights, ids, sizes), targets, scale)
    assert grads.keys() == weights.keys()

    def loss(tensor: Array) -> float:
        return scale * float(llama.losses({**weights, name: tensor}, ids, targets, sizes).sum())

    of_case = {"value": errors["loss"], "gradient": errors[name]}  # of a scale of 1, and so no less than those of 0.37
    check_gradient(loss, weights[name], grads[name], np.random.default_rng(1), of_case)


def test_backward_of_every_operation_is_the_slope_of_its_forward() -> None:
    rng = np.random.default_rng(3)
    check = partial(check_backward, rng=rng)
    normal = rng.standard_normal

    x, weight, dy = normal((2, 5, 6)), normal(6), normal((2, 5, 6))
    check(
        lambda x, weight: reference.rmsnorm_forward(x, weight, 0.1), [x, weight], dy,
        lambda: reference.rmsnorm_backward(dy, x, weight, 0.1),
    )  # fmt: skip
    heads, gain, d_heads = normal((2, 5, 3, 4)), normal(4), normal((2, 5, 3, 4))
    check(
        lambda x, weight: reference.head_norm_forward(x, weight, 0.1), [heads, gain], d_heads,
        lambda: reference.head_norm_backward(d_heads, heads, gain, 0.1),
    )  # fmt: skip
    cos, sin = reference.rotary_tables(Rotary(theta=3.0, dimensions=2), 4, 5)
    check(
        lambda x: reference.rotary_forward(x, cos, sin), [heads], d_heads,
        lambda: (reference.rotary_backward(d_heads, cos, sin),),
    )  # fmt: skip
    gate_up, d_mlp = 3.0 * normal((2, 5, 14)), normal((2, 5, 7))
    check(reference.swiglu_forward, [gate_up], d_mlp, lambda: (reference.swiglu_backward(d_mlp, gate_up),))
    qkv, d_attn = normal((2, 5, 30)), normal((2, 5, 18))
    check(
        lambda qkv: reference.attention_forward(qkv, 6, 2)[0], [qkv], d_attn,
        lambda: (reference.attention_backward(d_attn, qkv, 6, 2),),
    )  # fmt: skip
    rows, d_logits = normal((9, 6)), normal((2, 5, 9))
    check(
        lambda x, rows: product(x, rows.T), [x, rows], d_logits,
        lambda: reference.projection_backward(d_logits, x, rows),
    )  # fmt: skip


def test_grouped_attention_is_attention_with_repeated_keys_and_values() -> None:
    qkv = np.random.default_rng(4).standard_normal((2, 6, 40))  # 6 heads of 4 for queries, 2 for keys, 2 for values
    q, k, v = qkv[..., :24], qkv[..., 24:32], qkv[..., 32:]
    repeated = [np.concatenate([part[..., :4]] * 3 + [part[..., 4:]] * 3, axis=-1) for part in (k, v)]
    out, lse = reference.attention_forward(qkv, 6, 2)
    expected, expected_lse = reference.attention_forward(np.concatenate([q, *repeated], axis=-1), 6)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(lse, expected_lse)


def test_a_token_depends_on_none_after_it() -> None:
    sizes, weights, ids, _ = make_case("plain")
    changed = ids.copy()
    changed[:, 3:] = (changed[:, 3:] + 1) % sizes.vocabulary
    before, after = (llama.forward(weights, x, sizes).logits for x in (ids, changed))
    bound = 2.0 * model_errors("plain")["logits"]
    assert np.linalg.norm(after[:, :3] - before[:, :3]) <= bound
    assert (np.linalg.norm(after[:, 3:] - before[:, 3:], axis=2) > bound).all()


def test_rotary_positions_make_scores_depend_on_the_distance_alone() -> None:
    rng = np.random.default_rng(6)
    q, k = (np.broadcast_to(rng.standard_normal(7), (1, 9, 1, 7)) for _ in range(2))
    cos, sin = reference.rotary_tables(Rotary(theta=20.0, dimensions=6), 7, 9)
    q, k = (reference.rotary_forward(x, cos, sin)[0, :, 0] for x in (q, k))
    scores = q @ k.T
    # Of a score: 7 products of numbers from a rotation each, whose angles are off by 3 roundings of at most 8 radians.
    bound = 2.0 * gamma(40, FLOAT64) * (np.abs(q) @ np.abs(k.T)).max() * 8.0
    for distance in range(-8, 9):
        diagonal = np.diagonal(scores, distance)
        assert np.ptp(diagonal) <= bound
    assert np.ptp(scores) > 1e3 * bound
    assert (q[:, 6] == q[0, 6]).all(), "the dimension that is not rotated"


def test_frequencies_are_the_published_ones() -> None:
    """Numbers computed by hand: theta**(-2 i / M), and Llama 3.1's three regimes of wavelengths."""
    few = gamma(30, FLOAT64)
    plain = reference.rotary_frequencies(Rotary(theta=10_000.0), 8)
    np.testing.assert_allclose(plain, [1.0, 0.1, 0.01, 0.001], rtol=few)
    partial_head = reference.rotary_frequencies(Rotary(theta=10_000.0, dimensions=4, linear_factor=4.0), 8)
    np.testing.assert_allclose(partial_head, [0.25, 0.0025], rtol=few)
    # Context 2000 pi: the wavelengths 2 pi, 20 pi, 200 pi and 2000 pi are 1000, 100, 10 and 1 times in it.
    scaled = Rotary(10_000.0, llama3=Llama3Scaling(8.0, 5.0, 25.0, 2000.0 * math.pi))
    found = reference.rotary_frequencies(scaled, 8)
    np.testing.assert_allclose(found, [1.0, 0.1, 0.75 * 0.01 / 8.0 + 0.25 * 0.01, 0.001 / 8.0], rtol=few)


def test_large_gates_neither_overflow_nor_lose_the_small_results() -> None:
    gate = np.array([-800.0, -40.0, 40.0, 800.0])
    out = reference.swiglu_forward(np.concatenate([gate, np.ones(4)]))
    np.testing.assert_allclose(out, [0.0, -40.0 * math.exp(-40.0), 40.0, 800.0], rtol=gamma(200, FLOAT64))
    slope = reference.swiglu_backward(np.ones(4), np.concatenate([gate, np.ones(4)]))[:4]
    np.testing.assert_allclose(slope, [0.0, -39.0 * math.exp(-40.0), 1.0, 1.0], rtol=gamma(200, FLOAT64))


# --- Hugging Face -----------------------------------------------------------------------------------------------------

PEERS = {
    "Llama": (Family.LLAMA, MODELS["plain"]),
    "Llama with biases": (
        Family.LLAMA,
        LlamaSizes(
            vocabulary=7, layers=2, channels=8, heads=4, kv_heads=2, head_size=6, mlp_width=9, tied=True,
            qkv_bias=True, attn_proj_bias=True, mlp_bias=True,
        ),
    ),
    "Llama 3.1": (
        Family.LLAMA,
        LlamaSizes(
            vocabulary=5, layers=1, channels=8, heads=2, kv_heads=1, head_size=10, mlp_width=3, rotary=SCALED
        ),
    ),
    "linear scaling": (
        Family.LLAMA,
        LlamaSizes(
            vocabulary=5, layers=1, channels=8, heads=2, kv_heads=1, head_size=4, mlp_width=3,
            rotary=Rotary(theta=500.0, linear_factor=2.5),
        ),
    ),
    "Mistral": (
        Family.MISTRAL,
        LlamaSizes(vocabulary=6, layers=2, channels=9, heads=3, kv_heads=1, head_size=8, mlp_width=5, epsilon=1e-5),
    ),
    "Qwen2": (
        Family.QWEN2,
        LlamaSizes(
            vocabulary=6, layers=2, channels=12, heads=3, kv_heads=1, head_size=4, mlp_width=5, tied=True,
            qkv_bias=True, rotary=Rotary(theta=1e6),
        ),
    ),
    "Qwen3": (
        Family.QWEN3,
        LlamaSizes(
            vocabulary=6, layers=2, channels=7, heads=4, kv_heads=2, head_size=6, mlp_width=5, tied=True,
            qk_norm=True, rotary=Rotary(theta=1e6),
        ),
    ),
    "SmolLM3": (
        Family.SMOLLM3,
        LlamaSizes(
            vocabulary=6, layers=3, channels=8, heads=4, kv_heads=2, head_size=2, mlp_width=5, tied=True,
            layers_without_rotary=frozenset({1}), rotary=Rotary(theta=2e6),
        ),
    ),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("peer", PEERS)
def test_same_logits_loss_and_gradients_as_hugging_face(peer: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    family, sizes = PEERS[peer]
    rng = np.random.default_rng(7)
    weights = sizes.random_tensors(rng)
    ids, targets = rng.integers(0, sizes.vocabulary, (2, 3, 9))
    model = hugging_face_model(family, sizes)
    compute_in_float64(model, sizes)
    load(model, weights, sizes)
    logits = model(input_ids=torch.tensor(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()

    scale = 1.0 / targets.size
    bounds = float64_bounds(lambda: llama_tensors(weights, ids, targets, sizes, scale))
    record = llama.forward(weights, ids, sizes)
    assert np.linalg.norm(record.logits - logits.detach().numpy()) <= 2.0 * bounds["logits"]
    mean = float(llama.losses(weights, ids, targets, sizes).mean())
    assert abs(mean - loss.item()) <= 2.0 * (bounds["losses"] / math.sqrt(targets.size) + FLOAT64 * mean)
    grads, _ = llama.backward(weights, record, targets, scale)
    parameters = dict(model.named_parameters())
    for name, theirs, gradient in parts(grads, sizes):
        error = np.linalg.norm(gradient - parameters[theirs].grad.numpy())
        assert error <= 2.0 * bounds[name], theirs


@pytest.mark.torch
@pytest.mark.parametrize("peer", PEERS)
def test_same_rotary_tables_and_norms_as_hugging_face(peer: str) -> None:
    """Their own code for both, which computes in float32."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    family, sizes = PEERS[peer]
    model = hugging_face_model(family, sizes).double()
    tokens = 500
    found = model.model.rotary_emb(torch.zeros(1, 1, 1, dtype=torch.float64), torch.arange(tokens)[None])
    angles = np.outer(np.arange(tokens), reference.rotary_frequencies(sizes.rotary, sizes.head_size))
    # Of a frequency, relatively: the rounded exponent, at most 1, times log(theta); the power, the division and the
    # four operations of a scaling. Then one product, and the rounding of the cosine.
    bound = angles * gamma(8 + math.ceil(math.log(sizes.rotary.theta))) + gamma(2)
    for table, expected in zip(found, reference.rotary_tables(sizes.rotary, sizes.head_size, tokens), strict=True):
        both = table[0].numpy()
        np.testing.assert_array_equal(both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :])
        assert_within(both[:, : both.shape[1] // 2], expected, bound)
    norm = model.model.norm
    x = np.random.default_rng(8).standard_normal((4, sizes.channels)) * 1e-2  # small, so that epsilon is seen
    ours = reference.rmsnorm_forward(x, norm.weight.detach().numpy(), sizes.epsilon)
    assert_within(norm(torch.tensor(x)).detach().numpy(), ours, gamma(sizes.channels + 8) * np.abs(ours))
