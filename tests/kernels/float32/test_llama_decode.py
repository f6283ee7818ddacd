"""Generation with a Llama and a cache against the reference's full forward, position by position."""

import numpy as np
import pytest

from tests.error_bounds import with_bounds
from tests.kernels.comparison import assert_close
from tests.kernels.llama_model import LlamaFloat32
from tests.kernels.llama_support import CASES, LlamaCase
from tests.kernels.support import Guarded, alone
from tests.reference import Ids, Tensors, llama as reference
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.float32.llama_decode import LlamaDecodeScratch, decode_token, next_logits
from threadloom.kernels.float32.one_token import KVCache, prefill_cache


@pytest.fixture(params=[name for name in CASES if name != "more than a tile of queries"])
def case(request: pytest.FixtureRequest) -> LlamaCase:
    return CASES[request.param]


def decode_memory(case: LlamaCase, memory: Guarded) -> tuple[KVCache, LlamaDecodeScratch, Floats]:
    """Return a cache, scratch and logits, full of NaN."""
    s, empty = case.sizes, memory.empty
    shape = (s.layers, case.context, s.kv_heads * s.head_size)
    scratch = LlamaDecodeScratch(
        x=empty(s.channels), qkv=empty(case.qkv_width), attn=empty(case.attn_width),
        gate_up=empty(1, 2 * s.mlp_width), h=empty(s.channels), heads=empty(1, case.qkv_width),
        qk_raw=empty(1, case.raw_width), gated=empty(1, s.mlp_width), scores=empty(case.context),
    )  # fmt: skip
    return KVCache(empty(*shape), empty(*shape)), scratch, empty(s.vocabulary)


def logits_and_bounds(model: LlamaFloat32, ids: Ids) -> tuple[Tensors, dict[str, float]]:
    """Return the logits of each position of a sequence, and the relative distances that are allowed to them."""

    def logits() -> Tensors:
        rows = reference.forward(model.tensors, ids[None], model.sizes.sizes).logits[0]
        return {str(position): row for position, row in enumerate(rows)}

    return with_bounds(logits)


def test_token_by_token(case: LlamaCase) -> None:
    rng = np.random.default_rng(0)
    model = LlamaFloat32(case, case.sizes.random_tensors(rng))
    cache, scratch, logits = decode_memory(case, model.memory)
    ids = case.ids(rng)[0]
    expected, bounds = logits_and_bounds(model, ids)
    for position, token in enumerate(ids):
        decode_token(model.weights, cache, int(token), position, case.constants, scratch, logits, alone())
        assert_close(logits, expected[str(position)], bounds[str(position)], f"position {position}")
    model.memory.check()


def test_continuing_after_a_prompt_that_forward_processed(case: LlamaCase) -> None:
    rng = np.random.default_rng(1)
    model = LlamaFloat32(case, case.sizes.random_tensors(rng))
    cache, scratch, logits = decode_memory(case, model.memory)
    ids, sequence = case.ids(rng), case.sequences - 1
    model.forward(ids)
    prompt = -(-case.tokens // 2)
    prefill_cache(model.acts.qkv, sequence * case.tokens, prompt, cache)
    assert np.isnan(cache.keys[:, prompt:]).all()
    row = sequence * case.tokens + prompt - 1
    next_logits(model.weights, model.acts.x[case.sizes.layers, row], case.constants, scratch.h, logits, alone())
    expected, bounds = logits_and_bounds(model, ids[sequence])
    assert_close(logits, expected[str(prompt - 1)], bounds[str(prompt - 1)], "after the prompt")
    for position in range(prompt, case.tokens):
        token = int(ids[sequence, position])
        decode_token(model.weights, cache, token, position, case.constants, scratch, logits, alone())
        assert_close(logits, expected[str(position)], bounds[str(position)], f"position {position}")
    model.memory.check()
