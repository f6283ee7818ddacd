"""Growth of a model, checked in float64: the same logits, and gradients that follow the derived rules."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tests.reference import Ids, Tensors
from tests.stages.support import LLAMA, tiny
from tests.stages.training.oracle import Oracle, oracle_of
from threadloom.stages.config import ResolvedConfig, model_config_of
from threadloom.stages.models import Growth, LlamaGeometry, Placement, architecture_of, parameter_shapes

GPT2 = tiny()
MODELS = {
    "gpt2": GPT2,
    "llama": tiny(base=LLAMA),
    "llama-tied": tiny("model.tied=true", "model.qkv_bias=false", "model.qk_norm=false", base=LLAMA),
}
NOISE = 0.1
"""Large noise, but so small that a layer does not amplify differences of the copies that come from rounding."""


def drawn(config: ResolvedConfig) -> tuple[Tensors, Ids, Ids]:
    """Return weights of a model, ids and targets."""
    rng, shape = np.random.default_rng(5), (3, config.model.context)
    ids, targets = (rng.integers(0, config.model.vocab_size, shape) for _ in range(2))
    return oracle_of(config).random_tensors(rng, 0.3), ids, targets


def oracle(config: ResolvedConfig, growth: Growth) -> Oracle:
    """Return the reference of the grown model."""
    model = model_config_of(growth.geometry).resolved(growth.geometry.vocabulary)
    return oracle_of(msgspec.structs.replace(config, model=model))


def grown_weights(growth: Growth, weights: Tensors) -> Tensors:
    target = {name: np.empty(shape) for name, shape in parameter_shapes(growth.geometry).items()}
    growth.write_weights(weights, target, growth.inserted())
    return target


def grown_moments(growth: Growth, gradients: Tensors, power: int) -> Tensors:
    target = {name: np.full(shape, np.nan) for name, shape in parameter_shapes(growth.geometry).items()}
    growth.write_moments({name: tensor**power for name, tensor in gradients.items()}, target, power)
    return target


def written(growth: Growth) -> set[str]:
    """Return the tensors whose gradient in an inserted layer is not zero."""
    return {name for name, rule in architecture_of(growth.small).growth(growth.small).items() if rule.writes_residual}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("factor", "layers", "placement"),
    [(2, 0, Placement.END), (3, 2, Placement.EVEN), (1, 3, Placement.END), (1, 1, Placement.EVEN)],
)
def test_the_grown_model_computes_the_same_logits(name: str, factor: int, layers: int, placement: Placement) -> None:
    config = MODELS[name]
    growth = Growth(config.geometry(), factor, layers, placement, NOISE, seed=7)
    weights, ids, _ = drawn(config)
    grown = grown_weights(growth, weights)
    assert {key: tensor.shape for key, tensor in grown.items()} == parameter_shapes(growth.geometry)
    expected = oracle_of(config).forward(weights, ids).logits
    found = oracle(config, growth).forward(grown, ids).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("factor", "layers"), [(2, 1), (3, 0), (1, 2)])
def test_moments_follow_the_gradients_of_the_grown_model(name: str, factor: int, layers: int) -> None:
    """Without noise, the gradient and its square are the mapped ones, but where inserted layers join the others."""
    config = MODELS[name]
    growth = Growth(config.geometry(), factor, layers, Placement.EVEN, noise=0.0)
    weights, ids, targets = drawn(config)
    _, gradients = oracle_of(config).loss_and_gradients(weights, ids, targets, 1.0)
    _, found = oracle(config, growth).loss_and_gradients(grown_weights(growth, weights), ids, targets, 1.0)
    inserted = [new for new, old in enumerate(growth.sources) if old is None]
    for key in written(growth) & found.keys():
        assert not inserted or np.abs(found[key][inserted]).max() > 0, f"{key} of inserted layers cannot learn"
        found[key][inserted] = 0.0
    for power in (1, 2):
        for key, expected in grown_moments(growth, gradients, power).items():
            np.testing.assert_allclose(
                found[key] ** power, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max(), err_msg=key
            )


@pytest.mark.parametrize("name", MODELS)
def test_noise_gives_the_copies_different_gradients(name: str) -> None:
    config = MODELS[name]
    weights, ids, targets = drawn(config)
    for noise, differ in ((0.02, True), (0.0, False)):
        growth = Growth(config.geometry(), 2, noise=noise)
        _, found = oracle(config, growth).loss_and_gradients(grown_weights(growth, weights), ids, targets, 1.0)
        for key in ("wte", "attn_proj_weight"):
            first, second = np.split(found[key], 2, -1)
            distance = np.abs(first - second).max() / np.abs(first).max()
            assert (distance > 1e-3) if differ else (distance < 1e-12), key


def test_noise_has_the_deviation_asked_for_and_cancels() -> None:
    geometry = replace(GPT2.geometry(), channels=60)
    weights = {"fc_weight": np.zeros(parameter_shapes(geometry)["fc_weight"])}
    for factor in (2, 3):
        growth = Growth(geometry, factor, noise=0.5, seed=1)
        grown = {"fc_weight": np.empty(parameter_shapes(growth.geometry)["fc_weight"])}
        growth.write_weights(weights, grown, {})
        (tensor,) = grown.values()
        assert tensor.std() == pytest.approx(0.5, rel=0.02)
        parts = tensor.reshape(2, factor, 60, -1)
        np.testing.assert_allclose(parts.sum(1), 0.0, atol=1e-15)


@pytest.mark.parametrize(
    ("layers", "placement", "expected"),
    [
        (2, Placement.END, (0, 1, None, None)),
        (2, Placement.EVEN, (0, None, 1, None)),
        (1, Placement.EVEN, (0, None, 1)),
        (3, Placement.EVEN, (0, None, None, 1, None)),
    ],
)
def test_places_of_inserted_layers(layers: int, placement: Placement, expected: tuple[int | None, ...]) -> None:
    assert Growth(GPT2.geometry(), 1, layers, placement).sources == expected


def test_layers_without_rotary_positions_keep_their_weights() -> None:
    geometry = MODELS["llama"].geometry()
    assert isinstance(geometry, LlamaGeometry)
    grown = Growth(geometry, 1, 3, Placement.EVEN).geometry  # 0, None, 1, None, 2, None
    assert isinstance(grown, LlamaGeometry)
    assert sorted(geometry.layers_without_rotary) + sorted(grown.layers_without_rotary) == [1, 2]
