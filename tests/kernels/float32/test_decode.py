"""Generation with a cache against the reference's full forward, position by position."""

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import allowed
from tests.kernels.comparison import assert_close
from tests.kernels.model import Model
from tests.kernels.support import Sizes, alone, make_cache, make_decode_scratch
from tests.reference import Ids, Tensors
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.float32.decode import DecodeScratch, decode_token, next_logits
from threadloom.kernels.float32.one_token import KVCache, prefill_cache

SIZES = {
    "odd": Sizes(vocabulary=37, context=13, layers=3, heads=3, channels=15, sequences=2, tokens=11),
    "one layer and head": Sizes(vocabulary=11, context=70, layers=1, heads=1, channels=9, sequences=1, tokens=70),
    "one position": Sizes(vocabulary=7, context=1, layers=2, heads=2, channels=10, sequences=1, tokens=1),
}


@pytest.fixture(params=list(SIZES))
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return SIZES[request.param]


def decode_memory(model: Model) -> tuple[KVCache, DecodeScratch, Floats]:
    """Return a cache, scratch and logits in the guarded memory of the model."""
    sizes, memory = model.sizes, model.memory
    return make_cache(sizes, memory), make_decode_scratch(sizes, memory), memory.empty(sizes.vocabulary)


def logits_bounds(model: Model, ids: Ids, heads: int, sequence: int) -> dict[str, float]:
    """Return the relative distance that is allowed to the logits of each position of a sequence."""

    def logits() -> Tensors:
        rows = reference.forward(model.tensors, ids, heads).logits[sequence]
        return {str(position): row for position, row in enumerate(rows)}

    return allowed(logits)


def test_token_by_token(sizes: Sizes) -> None:
    rng = np.random.default_rng(0)
    model = Model(sizes, sizes.tensors(rng))
    cache, scratch, logits = decode_memory(model)
    ids = sizes.ids(rng)[0]
    expected = reference.forward(model.tensors, ids[None], sizes.heads).logits[0]
    bounds = logits_bounds(model, ids[None], sizes.heads, 0)
    for position, token in enumerate(ids):
        decode_token(model.weights, cache, int(token), position, sizes.constants, scratch, logits, alone())
        assert_close(logits, expected[position], bounds[str(position)], f"position {position}")
    model.memory.check()


@pytest.mark.parametrize("sequence", [0, 1])
def test_going_on_after_a_prompt_that_forward_took_in(sequence: int) -> None:
    sizes = SIZES["odd"]
    rng = np.random.default_rng(1)
    model = Model(sizes, sizes.tensors(rng))
    cache, scratch, logits = decode_memory(model)
    ids = sizes.ids(rng)
    model.forward(ids)
    prompt = 7
    prefill_cache(model.acts.qkv, sequence * sizes.tokens, prompt, cache)
    assert np.isnan(cache.keys[:, prompt:]).all()
    row = sequence * sizes.tokens + prompt - 1
    next_logits(model.weights, model.acts.x[sizes.layers, row], sizes.constants, scratch.h, logits, alone())
    expected = reference.forward(model.tensors, ids, sizes.heads).logits[sequence]
    bounds = logits_bounds(model, ids, sizes.heads, sequence)
    assert_close(logits, expected[prompt - 1], bounds[str(prompt - 1)], "after the prompt")
    for position in range(prompt, sizes.tokens):
        decode_token(
            model.weights, cache, int(ids[sequence, position]), position, sizes.constants, scratch, logits, alone()
        )
        assert_close(logits, expected[position], bounds[str(position)], f"position {position}")
    model.memory.check()
