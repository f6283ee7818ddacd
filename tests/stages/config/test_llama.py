"""The settings of the Llama family: derived sizes, and the geometry that they describe."""

from typing import Any

import pytest

from tests.stages.resolve.support import refusal
from threadloom.stages.config import (
    Gpt2Config,
    LlamaConfig,
    RotaryConfig,
    RotaryScaling,
    model_config_of,
)
from threadloom.stages.models import Geometry, Llama3Scaling, LlamaGeometry, Rotary, parameter_count
from threadloom.stages.resolve import load_config

LLAMA_7B = LlamaConfig(context=2048, layers=32, heads=32, channels=4096)


def test_open_sizes_are_derived_as_those_of_the_first_llama() -> None:
    geometry = LLAMA_7B.geometry_with(32_000)
    assert (geometry.kv_heads, geometry.head_size, geometry.mlp_width) == (32, 128, 11_008)  # Touvron et al., 2023
    assert geometry.rotary == Rotary(theta=10_000.0)


def test_explicit_sizes_are_kept() -> None:
    model = LlamaConfig(context=8, layers=2, heads=6, channels=30, kv_heads=2, head_size=8, mlp_width=13)
    geometry = model.geometry_with(5)
    assert (geometry.kv_heads, geometry.head_size, geometry.mlp_width) == (2, 8, 13)
    assert model.resolved(5).geometry() == geometry
    assert model.resolved(5).rotary.dimensions == 8


GEOMETRIES = [
    Geometry(11, 8, 2, 3, 15),
    LlamaGeometry(11, 8, 2, 4, 12, kv_heads=2, head_size=6, mlp_width=7),
    LlamaGeometry(
        11, 8, 4, 4, 12, kv_heads=1, head_size=6, mlp_width=7, epsilon=1e-3, rotary=Rotary(5e5, dimensions=4),
        layers_without_rotary=frozenset({1, 3}), tied=True, qkv_bias=True,
    ),
    LlamaGeometry(
        11, 8, 2, 4, 12, kv_heads=4, head_size=6, mlp_width=7, rotary=Rotary(1e4, linear_factor=2.5),
        attn_proj_bias=True, mlp_bias=True, qk_norm=True,
    ),
    LlamaGeometry(
        11, 8, 2, 4, 12, kv_heads=4, head_size=6, mlp_width=7, rotary=Rotary(llama3=Llama3Scaling(32.0, 1.0, 4.0, 64))
    ),
]  # fmt: skip


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_settings_of_a_geometry_describe_it(geometry: Geometry) -> None:
    model = model_config_of(geometry)
    model.check()
    assert model.geometry_with(geometry.vocabulary) == geometry
    assert model.architecture.value == geometry.architecture


@pytest.mark.parametrize(
    ("name", "parameters"), [("smollm2-135m", 134_515_008), ("qwen3-0.6b", 596_049_920), ("llama-small", 15_735_168)]
)
def test_shipped_models_have_the_parameters_of_the_family(name: str, parameters: int) -> None:
    """Counted here: embedding, head unless tied, per layer the projections, the MLP, the norms and the last norm."""
    model = load_config(name).model
    assert isinstance(model, LlamaConfig)
    g = model.resolved(model.vocab_size or 0).geometry()
    heads = g.head_size * (2 * g.heads + 2 * g.kv_heads)
    layer = g.channels * heads + 3 * g.channels * g.mlp_width + 2 * g.channels + 2 * g.head_size * g.qk_norm
    assert g.vocabulary * g.channels * (2 - g.tied) + g.layers * layer + g.channels == parameters
    assert parameter_count(g) == parameters


def llama(**changes: Any) -> LlamaConfig:
    sizes = {"context": 8, "layers": 4, "heads": 6, "channels": 24}
    return LlamaConfig(**(sizes | changes))


@pytest.mark.parametrize(
    ("model", "subject", "words"),
    [
        (llama(channels=25), "model.channels", ["model.heads = 6", "[1, 5, 25]", "model.head_size"]),
        (llama(kv_heads=4), "model.kv_heads", ["a divisor of model.heads = 6", "[1, 2, 3, 6]"]),
        (llama(head_size=5), "model.head_size", ["an even number", "got 5", "pairs"]),
        (llama(channels=18), "model.head_size", ["got 3 = model.channels / model.heads = 18 / 6"]),
        (llama(layers_without_rotary=(3, 4)), "model.layers_without_rotary", ["0 to 3", "got [4]"]),
        (llama(layers_without_rotary=(-1,)), "model.layers_without_rotary", ["got [-1]"]),
        (llama(rotary=RotaryConfig(dimensions=3)), "model.rotary.dimensions", ["an even number", "head size 4"]),
        (llama(rotary=RotaryConfig(dimensions=6)), "model.rotary.dimensions", ["at most the head size 4"]),
        (llama(rotary=RotaryConfig(factor=8.0)), "model.rotary.factor", ["model.rotary.scaling=linear"]),
        (
            llama(rotary=RotaryConfig(scaling=RotaryScaling.LLAMA3, factor=8.0, low_freq_factor=4.0)),
            "model.rotary.high_freq_factor", ["more than model.rotary.low_freq_factor = 4"],
        ),
    ],
)  # fmt: skip
def test_sizes_at_odds_are_refused_with_a_remedy(model: LlamaConfig, subject: str, words: list[str]) -> None:
    with refusal(subject, *words):
        model.check()


def test_a_head_size_frees_the_channels_from_the_heads() -> None:
    llama(channels=25, head_size=4).check()
    with refusal("model.channels"):
        Gpt2Config(context=8, layers=4, heads=6, channels=25).check()
