"""The angles of rotary positions: frequencies in every regime of every scaling, and their cosines and sines."""

import math

import numpy as np
import pytest

from tests.error_bounds import FLOAT32, FLOAT64
from threadloom.stages.models import Llama3Scaling, Rotary, rotary_frequencies, rotary_table

SCALING = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)


def frequency(rotary: Rotary, pair: int, dimensions: int) -> float:
    """Return one frequency by its definition, case by case."""
    f = math.pow(rotary.theta, -2.0 * pair / dimensions)
    if rotary.llama3 is None:
        return f / rotary.linear_factor
    scaling, wavelength = rotary.llama3, 2.0 * math.pi / f
    if wavelength < scaling.original_context / scaling.high_freq_factor:
        return f
    if wavelength > scaling.original_context / scaling.low_freq_factor:
        return f / scaling.factor
    blend = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1.0 - blend) * f / scaling.factor + blend * f


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5, 1e6])
@pytest.mark.parametrize(
    ("rotary", "head_size"),
    [
        (Rotary(), 64),
        (Rotary(), 6),
        (Rotary(linear_factor=2.5), 128),
        (Rotary(dimensions=10), 40),
        (Rotary(llama3=SCALING), 128),
    ],
    ids=["plain", "small", "linear", "partial", "llama3"],
)
def test_frequencies(theta: float, rotary: Rotary, head_size: int) -> None:
    settings = Rotary(theta, rotary.dimensions, rotary.linear_factor, rotary.llama3)
    dimensions = rotary.dimensions or head_size
    expected = np.array([frequency(settings, pair, dimensions) for pair in range(dimensions // 2)])
    found = rotary_frequencies(settings, head_size)
    # A power is off by some units and by its exponent's error times ln(theta); a blend of two terms loses no more.
    np.testing.assert_allclose(found, expected, rtol=FLOAT64 * (20.0 + 2.0 * math.log(theta)))


def test_llama3_scaling_has_three_regimes() -> None:
    plain, scaled = (rotary_frequencies(Rotary(5e5, llama3=scaling), 128) for scaling in (None, SCALING))
    ratio = plain / scaled
    assert (ratio == 1.0).any()
    assert (ratio == SCALING.factor).any()
    assert ((ratio > 1.0) & (ratio < SCALING.factor)).any()
    assert (np.diff(ratio) >= 0.0).all()  # long wavelengths are stretched more


@pytest.mark.parametrize("rotary", [Rotary(1e6), Rotary(1e4, dimensions=10), Rotary(5e5, llama3=SCALING)])
def test_table_is_rounded_once(rotary: Rotary) -> None:
    """The angle is off by one rounding in float64, far less than half a unit in the last place of float32."""
    context, head_size = 5000, 64
    table = rotary_table(rotary, head_size, context)
    frequencies = rotary_frequencies(rotary, head_size)
    for position in (0, 1, 257, 4999):
        for found, function in ((table.cos, math.cos), (table.sin, math.sin)):
            exact = np.array([function(position * f) for f in frequencies])
            assert (np.abs(found[position] - exact) <= FLOAT32 * np.abs(exact) + context * 4.0 * FLOAT64).all()
    for found in table:
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.shape == (context, frequencies.size)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("rotary", "parameters"),
    [
        (Rotary(1e4), {"rope_type": "default"}),
        (Rotary(1e6), {"rope_type": "default"}),
        (Rotary(1e4, linear_factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            Rotary(5e5, llama3=SCALING),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_transformers_has_the_same_angles_in_float32(rotary: Rotary, parameters: dict[str, object]) -> None:
    """Its frequencies are off by some 10 units, and each angle by one more: at position t by t f (10 + 1) u."""
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama")
    context, head_size = 4096, 64
    config = llama.LlamaConfig(
        hidden_size=2 * head_size,
        num_attention_heads=2,
        max_position_embeddings=16 * context,
        rope_parameters={"rope_theta": rotary.theta, **parameters},
    )
    embedding = llama.modeling_llama.LlamaRotaryEmbedding(config)
    cos, sin = embedding(torch.zeros(1), torch.arange(context)[None])
    table = rotary_table(rotary, head_size, context)
    angles = np.outer(np.arange(context), rotary_frequencies(rotary, head_size))
    bound = (11.0 * angles + 4.0) * FLOAT32
    for found, theirs in ((table.cos, cos), (table.sin, sin)):
        for half in np.split(theirs[0].numpy(), 2, axis=1):
            assert (np.abs(found - half.astype(np.float64)) <= bound).all()
