"""Generation with a model of the Llama family, compared with the reference's full forward pass."""

import numpy as np
import pytest

from tests.error_bounds import with_bounds
from tests.kernels.comparison import assert_close
from tests.reference import Tensors
from tests.stages.support import LLAMA, tiny
from tests.stages.training.oracle import oracle_of
from threadloom.pipeline import Arena
from threadloom.stages.inference.decoder import Decoder
from threadloom.stages.layouts import as_weights
from threadloom.stages.models import parameter_shapes

pytestmark = pytest.mark.timeout(300)  # includes compiling with an empty cache


@pytest.mark.parametrize("overrides", [(), ("model.tied=true", "model.qk_norm=false", "model.kv_heads=3")])
def test_cached_logits_equal_a_full_forward_at_every_position(overrides: tuple[str, ...]) -> None:
    config = tiny(*overrides, base=LLAMA)
    geometry, oracle = config.model.geometry(), oracle_of(config)
    tensors = oracle.random_tensors(np.random.default_rng(3), 0.3)
    arena = Arena(parameter_shapes(geometry))
    for name, tensor in tensors.items():
        arena[name][...] = tensor
    weights = as_weights(geometry, arena)
    ids = np.random.default_rng(1).integers(0, geometry.vocabulary, geometry.context)

    def logits() -> Tensors:
        return {str(position): row for position, row in enumerate(oracle.forward(tensors, ids[None]).logits[0])}

    expected, bounds = with_bounds(logits)
    for prompt in (1, 4, geometry.context):
        decoder = Decoder(weights, geometry)
        found = decoder.prefill(ids[:prompt])
        assert_close(found, expected[str(prompt - 1)], bounds[str(prompt - 1)], f"position {prompt - 1}")
        for position in range(prompt, geometry.context):
            found = decoder.append(int(ids[position]))
            assert_close(found, expected[str(position)], bounds[str(position)], f"position {position}")


def test_a_full_cache_is_refilled_from_its_last_half() -> None:
    config = tiny(base=LLAMA)
    geometry = config.model.geometry()
    arena = Arena(parameter_shapes(geometry))
    for name, tensor in oracle_of(config).random_tensors(np.random.default_rng(3), 0.3).items():
        arena[name][...] = tensor
    weights, half = as_weights(geometry, arena), geometry.context // 2
    ids = np.random.default_rng(2).integers(0, geometry.vocabulary, geometry.context + 1)
    decoder = Decoder(weights, geometry)
    decoder.prefill(ids[:-1])
    found = decoder.append(int(ids[-1])).copy()
    np.testing.assert_array_equal(found, Decoder(weights, geometry).prefill(ids[-half:]))
