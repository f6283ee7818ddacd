"""The reference model, compared with finite differences and PyTorch's GPT-2: the oracle for the kernels."""

import math
from functools import cache, partial

import numpy as np
import pytest

from tests import reference
from tests.central_differences import check_backward, check_gradient, float64_bounds
from tests.error_bounds import FLOAT64, gamma, model_tensors
from tests.kernels.comparison import assert_within
from tests.reference import Array, Ids, Tensors

GEOMETRIES = {  # vocabulary, context, layers, channels, heads, sequences, tokens
    "odd": (13, 7, 2, 9, 3, 3, 5),
    "one token": (5, 4, 1, 6, 2, 2, 1),
    "one sequence": (11, 6, 3, 5, 1, 1, 6),
    "one of everything": (3, 1, 1, 2, 1, 1, 1),
    "more heads than tokens": (7, 3, 1, 10, 5, 2, 3),
}
Case = tuple[Tensors, Ids, Ids, int]


@pytest.fixture(params=list(GEOMETRIES))
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(*GEOMETRIES[request.param])


def make_case(
    vocabulary: int, context: int, layers: int, channels: int, heads: int, sequences: int, tokens: int
) -> Case:
    rng = np.random.default_rng([vocabulary, context, layers, channels])
    weights = reference.random_tensors(rng, vocabulary, context, layers, channels)
    ids, targets = rng.integers(0, vocabulary, (2, sequences, tokens))
    return weights, ids, targets, heads


FEW = gamma(50, FLOAT64)
"""Relative error of a number from at most 50 roundings in float64, with those of a few literals."""


@cache
def model_errors(geometry: str) -> dict[str, float]:
    """Return how far the loss, "value", and the gradients of a case are off by rounding in float64."""
    weights, ids, targets, heads = make_case(*GEOMETRIES[geometry])

    def results() -> Tensors:
        record = reference.forward(weights, ids, heads)
        grads, d_x_final = reference.backward(weights, record, targets)
        loss = reference.cross_entropy_forward(record.logits, targets)
        return {**grads, "d_x_final": d_x_final, "value": np.array([loss.sum()])}

    return float64_bounds(results)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", reference.tensor_shapes(1, 1, 1, 1))
def test_gradient_of_every_tensor_is_the_slope_of_the_loss(geometry: str, name: str) -> None:
    weights, ids, targets, heads = make_case(*GEOMETRIES[geometry])
    scale, errors = 0.37, model_errors(geometry)
    _, grads = reference.loss_and_gradients(weights, ids, targets, heads, scale)

    def loss(tensor: Array) -> float:
        return scale * reference.loss_sum({**weights, name: tensor}, ids, targets, heads)

    own = {"value": errors["value"], "gradient": errors[name]}  # of a scale of 1, and so no less than those of 0.37
    check_gradient(loss, weights[name], grads[name], np.random.default_rng(1), own)


def test_gradient_of_x_final_is_the_slope_of_the_loss() -> None:
    weights, ids, targets, heads = make_case(*GEOMETRIES["odd"])
    record = reference.forward(weights, ids, heads)
    _, d_x_final = reference.backward(weights, record, targets, scale=0.5)

    def loss(x: Array) -> float:
        logits = reference.layernorm_forward(x, weights["lnf_weight"], weights["lnf_bias"]) @ weights["wte"].T
        return 0.5 * float(reference.cross_entropy_forward(logits, targets).sum())

    errors = model_errors("odd")
    own = {"value": errors["value"], "gradient": errors["d_x_final"]}
    check_gradient(loss, record.x_final, d_x_final, np.random.default_rng(2), own)


def test_backward_of_every_operation_is_the_slope_of_its_forward() -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 7, (2, 5))
    targets = rng.integers(0, 9, (2, 5))

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape)

    check = partial(check_backward, rng=rng)
    x, weight, bias, dy = normal(2, 5, 6), normal(6), normal(6), normal(2, 5, 6)
    check(reference.layernorm_forward, [x, weight, bias], dy, lambda: reference.layernorm_backward(dy, x, weight))
    matrix, shift, d_wide = normal(6, 9), normal(9), normal(2, 5, 9)
    check(reference.linear_forward, [x, matrix, shift], d_wide, lambda: reference.linear_backward(d_wide, x, matrix))
    check(reference.gelu_forward, [3.0 * x], dy, lambda: (reference.gelu_backward(dy, 3.0 * x),))
    qkv = normal(2, 5, 18)
    check(
        lambda qkv: reference.attention_forward(qkv, 2)[0], [qkv], dy,
        lambda: (reference.attention_backward(dy, qkv, 2),),
    )  # fmt: skip
    check(
        lambda wte, wpe: reference.embedding_forward(wte, wpe, ids), [normal(7, 6), normal(8, 6)], dy,
        lambda: reference.embedding_backward(dy, ids, 7, 8),
    )  # fmt: skip
    logits = normal(2, 5, 9)
    check(
        lambda z: reference.cross_entropy_forward(z, targets), [logits], np.ones((2, 5)),
        lambda: (reference.cross_entropy_backward(logits, targets, 1.0),),
    )  # fmt: skip


def test_a_token_depends_on_none_after_it() -> None:
    weights, ids, _, heads = make_case(*GEOMETRIES["odd"])
    changed = ids.copy()
    changed[:, 3:] = (changed[:, 3:] + 1) % 13
    before = reference.forward(weights, ids, heads).logits
    after = reference.forward(weights, changed, heads).logits
    bound = 2.0 * float64_bounds(lambda: {"logits": reference.forward(weights, ids, heads).logits})["logits"]
    assert np.linalg.norm(after[:, :3] - before[:, :3]) <= bound
    assert (np.linalg.norm(after[:, 3:] - before[:, 3:], axis=2) > bound).all()
    assert np.linalg.norm(reference.next_token_logits(weights, ids[0, :3], heads) - before[0, 2]) <= bound


def test_log_sum_exp_of_attention_gives_its_probabilities() -> None:
    qkv = np.random.default_rng(4).standard_normal((1, 6, 15))
    _, lse = reference.attention_forward(qkv, 1)
    q, k, v = qkv[0, :, :5], qkv[0, :, 5:10], qkv[0, :, 10:]
    _, probabilities, _ = reference.attention_heads(q, k, v)
    # Of an exponential's argument: a sum of 5 products, the factor and the log-sum-exp. Two sums of 6 exponentials.
    sizes = np.abs(q) @ np.abs(k.T) + np.abs(lse[0, 0][:, None])
    relative = 2.0 * gamma(10, FLOAT64) * float(sizes.max()) + gamma(20, FLOAT64)
    np.testing.assert_allclose(probabilities, np.tril(np.exp(q @ k.T / 5**0.5 - lse[0, 0][:, None])), rtol=relative)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=gamma(20, FLOAT64))


def test_clipping_leaves_a_small_gradient_alone_and_shortens_a_long_one() -> None:
    grads = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    same, norm = reference.clip_by_global_norm(grads, 5.1)
    assert norm == 5.0
    np.testing.assert_array_equal(same["b"], grads["b"])
    clipped, _ = reference.clip_by_global_norm(grads, 1.0)
    scale = 1.0 / (5.0 + 1e-6)
    assert reference.global_norm(clipped) == pytest.approx(5.0 * scale, rel=FEW)
    assert clipped["a"][0] == pytest.approx(3.0 * scale, rel=FEW)


def test_constants_are_the_published_ones() -> None:
    """Literal numbers (the GELUs are PyTorch's), for machines without PyTorch."""
    gelu = reference.gelu_forward(np.array([-1.0, 1.0, 3.0]))
    np.testing.assert_allclose(gelu, [-0.1588080093917232, 0.8411919906082768, 2.9963626079182269], rtol=FEW)
    row = np.array([[-0.003, 0.003]])  # variance 9e-6, so that epsilon is the larger part
    normal = reference.layernorm_forward(row, np.ones(2), np.zeros(2))
    np.testing.assert_allclose(normal, row / np.sqrt(9e-6 + 1e-5), rtol=FEW)
    one, zero = {"wte": np.array([1.0])}, {"wte": np.array([0.0])}
    settings = reference.AdamW(lr=0.1, weight_decay=0.5, epsilon=1.0)
    weights, m, v = reference.adamw(one, {"wte": np.array([3.0])}, zero, zero, 1, settings)
    np.testing.assert_allclose([m["wte"][0], v["wte"][0]], [0.3, 0.009], rtol=FEW)
    np.testing.assert_allclose(weights["wte"], [1.0 - 0.1 * 0.5 - 0.1 * 3.0 / (3.0 + 1.0)], rtol=FEW)


# --- PyTorch ----------------------------------------------------------------------------------------------------------

BLOCK_NAMES = {
    "ln1_weight": "ln_1.weight",
    "ln1_bias": "ln_1.bias",
    "qkv_weight": "attn.c_attn.weight",
    "qkv_bias": "attn.c_attn.bias",
    "attn_proj_weight": "attn.c_proj.weight",
    "attn_proj_bias": "attn.c_proj.bias",
    "ln2_weight": "ln_2.weight",
    "ln2_bias": "ln_2.bias",
    "fc_weight": "mlp.c_fc.weight",
    "fc_bias": "mlp.c_fc.bias",
    "mlp_proj_weight": "mlp.c_proj.weight",
    "mlp_proj_bias": "mlp.c_proj.bias",
}
MODEL_NAMES = {"wte": "wte.weight", "wpe": "wpe.weight", "lnf_weight": "ln_f.weight", "lnf_bias": "ln_f.bias"}


def theirs(name: str, layers: int) -> list[str]:
    """Return the names under which Hugging Face's GPT-2 keeps a tensor: one, or one for each layer."""
    if name in MODEL_NAMES:
        return ["transformer." + MODEL_NAMES[name]]
    return [f"transformer.h.{layer}.{BLOCK_NAMES[name]}" for layer in range(layers)]


@pytest.mark.torch
def test_same_logits_loss_gradients_and_clipping_as_hugging_face(case: Case) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    weights, ids, targets, heads = case
    layers, channels = weights["ln1_weight"].shape
    config = transformers.GPT2Config(
        vocab_size=weights["wte"].shape[0],
        n_positions=weights["wpe"].shape[0],
        n_embd=channels,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(config).double()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            for part, values in zip(theirs(name, layers), [tensor] if name in MODEL_NAMES else tensor, strict=True):
                parameters[part].copy_(torch.tensor(values))
    logits = model(input_ids=torch.tensor(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()

    record = reference.forward(weights, ids, heads)
    mean = 1.0 / targets.size
    bounds = float64_bounds(lambda: model_tensors(weights, ids, targets, heads, mean))
    assert np.linalg.norm(record.logits - logits.detach().numpy()) <= 2.0 * bounds["logits"]
    of_losses = bounds["losses"] / math.sqrt(targets.size) + FLOAT64 * loss.item()
    assert abs(reference.loss_mean(weights, ids, targets, heads) - loss.item()) <= 2.0 * of_losses
    grads, _ = reference.backward(weights, record, targets, scale=mean)

    def check_gradients(grads: Tensors, scale: float) -> None:
        for name, gradient in grads.items():
            of_torch = [parameters[part].grad.numpy() for part in theirs(name, layers)]
            expected = of_torch[0] if name in MODEL_NAMES else np.stack(of_torch)
            # The scale after clipping, if it is not 1, is off by as much relatively as the norm.
            of_scale = float(np.linalg.norm(expected)) * (bounds["gradient"] / norm + FEW)
            assert np.linalg.norm(gradient - expected) <= 2.0 * (scale * bounds[name] + of_scale), name

    norm = reference.global_norm(grads)
    check_gradients(grads, 1.0)
    clipped, _ = reference.clip_by_global_norm(grads, 0.01)
    of_torch = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01))
    assert abs(norm - of_torch) <= 2.0 * (bounds["gradient"] + FEW * norm)
    check_gradients(clipped, min(1.0, 0.01 / norm))


@pytest.mark.torch
def test_same_updates_as_adamw_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    weights = {"wte": rng.standard_normal((4, 3)), "ln1_bias": rng.standard_normal((2, 3))}
    m, v = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    settings = reference.AdamW(lr=0.03, beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.2)
    parameters = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters["wte"]], "weight_decay": 0.2},
            {"params": [parameters["ln1_bias"]], "weight_decay": 0.0},
        ],
        lr=0.03,
        betas=(0.8, 0.95),
        eps=1e-3,
    )
    for step in range(1, 6):
        grads = {name: rng.standard_normal(w.shape) for name, w in weights.items()}
        weights, m, v = reference.adamw(weights, grads, m, v, step, settings)
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(grads[name])
        optimizer.step()
        for name, parameter in parameters.items():
            # 5 updates of about 20 roundings each, of weights and of changes of at most the learning rate
            bound = 2.0 * gamma(100, FLOAT64) * (np.abs(weights[name]) + 5 * 0.03)
            assert_within(parameter.detach().numpy(), weights[name], bound, name)
