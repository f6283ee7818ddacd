"""No kernel allocates memory."""

import numpy as np
import pytest

from tests.kernels.allocations import allocations
from tests.kernels.bits16.formats import FORMATS, Format
from tests.kernels.bits16.llama_model import Llama16, random_tensors
from tests.kernels.float32.test_llama_decode import decode_memory
from tests.kernels.llama_model import LlamaFloat32
from tests.kernels.llama_support import CASES
from tests.kernels.model import Model
from tests.kernels.support import Sizes, alone, flat_ids, make_cache, make_decode_scratch
from threadloom.kernels.bits16 import llama as bits16_llama
from threadloom.kernels.bits16.embedding import token_embedding_forward as bits16_embedding_forward
from threadloom.kernels.common.accumulation import single_writer
from threadloom.kernels.common.adamw import AdamWStep, adamw_update
from threadloom.kernels.common.embedding import embedding_backward, token_embedding_backward
from threadloom.kernels.common.reduction import sum_lanes
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.compiling.jit import JIT_ENABLED, jit_kernel
from threadloom.kernels.float32 import llama, llama_decode
from threadloom.kernels.float32.decode import decode_token
from threadloom.kernels.float32.embedding import embedding_forward, token_embedding_forward
from threadloom.kernels.float32.gpt2 import blocks_backward, blocks_forward, head_backward, head_loss
from threadloom.kernels.lattice import (
    Lattice,
    enumerate_nearest,
    lll_gram,
    nearest_in_blocks,
    nearest_planes,
    round_rows,
)

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="counts allocations of compiled code")


@jit_kernel
def allocating(x: Floats) -> float:
    copy = x.copy()
    return copy[0] + copy[1]


def test_an_allocation_is_counted() -> None:
    assert allocations(allocating, np.ones(40, np.float32)) > 0


def test_training_allocates_nothing() -> None:
    sizes = Sizes(vocabulary=37, context=13, layers=2, heads=3, channels=15, sequences=3, tokens=11)
    rng = np.random.default_rng(0)
    model = Model(sizes, sizes.tensors(rng))
    ids, targets = flat_ids(sizes.ids(rng)), flat_ids(sizes.ids(rng))
    weights, acts, grads, scratch = model.weights, model.acts, model.grads, model.scratch
    ticket = single_writer(accumulate=False)
    assert allocations(embedding_forward, weights.wte, weights.wpe, ids, sizes.tokens, acts.starts, acts.x[0]) == 0
    assert allocations(blocks_forward, weights, acts, sizes.sequences, sizes.constants) == 0
    assert allocations(head_loss, weights, acts, targets, sizes.constants, scratch.logits) == 0
    assert allocations(head_backward, weights, acts, targets, 1.0, grads, scratch, sizes.constants, ticket) == 0
    assert allocations(blocks_backward, weights, acts, grads, scratch, sizes.sequences, sizes.constants, ticket) == 0
    assert allocations(embedding_backward, ids, scratch.dx, sizes.tokens, acts.starts, grads.wte, grads.wpe, True) == 0


def test_training_a_llama_allocates_nothing() -> None:
    case, rng = CASES["norms of heads, partial rotary"], np.random.default_rng(0)
    model = LlamaFloat32(case, case.sizes.random_tensors(rng))
    ids, targets = flat_ids(case.ids(rng)), flat_ids(case.ids(rng))
    weights, acts, grads, scratch, constants = model.weights, model.acts, model.grads, model.scratch, case.constants
    ticket = single_writer(accumulate=False)
    assert allocations(token_embedding_forward, weights.wte, ids, acts.x[0]) == 0
    assert allocations(llama.blocks_forward, weights, acts, case.sequences, constants) == 0
    assert allocations(llama.head_loss, weights, acts, targets, constants, scratch.logits) == 0
    assert allocations(llama.head_backward, weights, acts, targets, 1.0, grads, scratch, constants, ticket) == 0
    assert allocations(llama.blocks_backward, weights, acts, grads, scratch, case.sequences, constants, ticket) == 0
    assert allocations(token_embedding_backward, ids, scratch.dx, grads.wte, False) == 0


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.timeout(600)  # most of it to compile, on a machine that was never here before
def test_training_a_llama_in_16_bits_allocates_nothing(fmt: Format) -> None:
    case, rng = CASES["norms of heads, partial rotary"], np.random.default_rng(0)
    model = Llama16(case, fmt, random_tensors(case, rng))
    ids, targets = flat_ids(case.ids(rng)), flat_ids(case.ids(rng))
    weights, acts, grads, scratch, constants = model.weights, model.acts, model.grads, model.scratch, case.constants
    ticket = single_writer(accumulate=False)
    assert allocations(bits16_embedding_forward, weights.packed.wte, ids, acts.x) == 0
    assert allocations(bits16_llama.blocks_forward, weights, acts, case.sequences, constants) == 0
    head = (weights, acts, targets)
    assert allocations(bits16_llama.head_backward, *head, 1.0, grads, scratch, constants, ticket) == 0
    body = (weights, acts, grads, scratch, case.sequences, constants, ticket)
    assert allocations(bits16_llama.blocks_backward, *body) == 0
    assert allocations(bits16_llama.head_loss, *head, constants, scratch.logits) == 0


def test_the_optimizer_and_the_reducer_allocate_nothing() -> None:
    w, new, gradient, m, v = (np.ones(1000, np.float32) for _ in range(5))
    step = AdamWStep(1e-3, 0.9, 0.99, 1e-8, 0.1, 0.1, 0.01, 1.0)
    assert allocations(adamw_update, w, new, gradient, m, v, 400, step) == 0
    assert allocations(adamw_update, w, w, gradient, m, v, 400, step) == 0
    assert allocations(sum_lanes, np.ones((3, 1000), np.float32), new, np.zeros(1), 0, 1) == 0


def test_lattices_allocate_nothing() -> None:
    n = 6
    gram, transform = np.eye(n, dtype=np.int64) * 9 + 3, np.eye(n, dtype=np.int64)
    r, mu, ratios = np.zeros((n, n)), np.zeros((n, n)), np.eye(n)
    assert allocations(lll_gram, gram, transform, r, mu, 0.99, 0.51) == 0
    points, out = np.full((4, n), 0.3), np.zeros((4, n), np.int64)
    assert allocations(nearest_planes, points, ratios, out) == 0
    search = (ratios, np.ones(n), np.full(n, 0.3), np.zeros(n), np.inf, False, 1000, np.zeros((4, n + 1)))
    assert allocations(enumerate_nearest, *search) == 0
    assert allocations(nearest_in_blocks, points, ratios, np.ones(n), 4, 1000, out, np.zeros((10, 5))) == 0
    rows = np.ones((3, 19), np.float32)
    assert allocations(round_rows, rows, int(Lattice.E8), 0.5, np.zeros(8, np.float32), rows) == 0


def test_generation_allocates_nothing() -> None:
    sizes = Sizes(vocabulary=37, context=13, layers=2, heads=3, channels=15, sequences=1, tokens=1)
    model = Model(sizes, sizes.tensors(np.random.default_rng(0)))
    memory = model.memory
    cache, scratch, logits = (
        make_cache(sizes, memory),
        make_decode_scratch(sizes, memory),
        memory.empty(sizes.vocabulary),
    )
    assert allocations(decode_token, model.weights, cache, 3, 0, sizes.constants, scratch, logits, alone()) == 0


def test_generation_with_a_llama_allocates_nothing() -> None:
    case, rng = CASES["norms of heads, partial rotary"], np.random.default_rng(0)
    model = LlamaFloat32(case, case.sizes.random_tensors(rng))
    cache, scratch, logits = decode_memory(case, model.memory)
    weights, constants = model.weights, case.constants
    assert allocations(llama_decode.decode_token, weights, cache, 3, 0, constants, scratch, logits, alone()) == 0
    x = np.ones(case.sizes.channels, np.float32)
    assert allocations(llama_decode.next_logits, weights, x, constants, scratch.h, logits, alone()) == 0
