"""Shapes, decay and initial values of GPT-2."""

import math

import numpy as np
import pytest

from threadloom.pipeline import Arena
from threadloom.stages.models import Geometry, decayed_elements, initialise, parameter_count, parameter_shapes
from threadloom.stages.models.gpt2 import MATRICES

GEOMETRY = Geometry(vocabulary=301, context=65, layers=3, heads=5, channels=55)


def weights(seed: int = 1, residual_scaling: bool = True, geometry: Geometry = GEOMETRY) -> Arena:
    arena = Arena(parameter_shapes(geometry))
    initialise(arena, geometry, seed, residual_scaling=residual_scaling)
    return arena


def test_the_number_of_parameters_is_that_of_gpt2() -> None:
    """The smallest GPT-2 has 124,439,808 parameters."""
    assert parameter_count(Geometry(vocabulary=50257, context=1024, layers=12, heads=12, channels=768)) == 124_439_808


def test_the_matrices_lead_the_arena() -> None:
    arena = Arena(parameter_shapes(GEOMETRY))
    inside = {name for name in arena if arena.offset(name) < decayed_elements(GEOMETRY)}
    assert inside == set(MATRICES)


@pytest.mark.parametrize("residual_scaling", [False, True])
def test_initial_values_have_the_documented_distributions(residual_scaling: bool) -> None:
    arena = weights(residual_scaling=residual_scaling)
    small = 0.02 / math.sqrt(6) if residual_scaling else 0.02
    for name, tensor in arena.items():
        if name in MATRICES:
            expected = small if name in ("attn_proj_weight", "mlp_proj_weight") else 0.02
            # Of n normal numbers: the mean and the standard deviation are off by 1 / sqrt(n) and 1 / sqrt(2 n) of it.
            assert abs(tensor.std() / expected - 1.0) < 5.0 / math.sqrt(2.0 * tensor.size), name
            assert abs(tensor.mean()) < 5.0 * expected / math.sqrt(tensor.size), name
        else:
            assert np.unique(tensor).tolist() == [1.0 if name in ("ln1_weight", "ln2_weight", "lnf_weight") else 0.0]


def test_a_tensor_depends_on_the_seed_but_on_no_other_tensor() -> None:
    first, again, other = weights(1), weights(1), weights(2)
    taller = weights(1, geometry=Geometry(vocabulary=17, context=65, layers=3, heads=5, channels=55))
    assert np.array_equal(first.flat, again.flat)
    for name in MATRICES:
        assert not np.array_equal(first[name], other[name])
        assert name == "wte" or np.array_equal(first[name], taller[name])
    assert not np.array_equal(first["qkv_weight"][0], first["qkv_weight"][1])
