"""The Llama family by a team of threads: the bits of one thread, in every variant, whatever the sizes."""

from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.llama_model import LlamaFloat32
from tests.kernels.llama_support import LlamaCase
from tests.kernels.team import Divided, check_team
from tests.reference import LlamaSizes
from threadloom.kernels.common import ATTENTION_TILE
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.float32 import LLAMA_TEAM

pytestmark = [
    pytest.mark.timeout(300),  # the first run compiles kernels
    pytest.mark.skipif(not JIT_ENABLED, reason="NumPy rounds a part of a product differently"),
]

PLAIN = LlamaSizes(vocabulary=23, layers=2, channels=18, heads=6, kv_heads=3, head_size=6, mlp_width=13)
VARIANT = replace(
    PLAIN, layers=3, kv_heads=1, tied=not PLAIN.tied, qkv_bias=True, attn_proj_bias=True, mlp_bias=True,
    layers_without_rotary=frozenset({1}),
)  # fmt: skip
SMALL = LlamaCase(PLAIN, 1, 7, 9)
SEVERAL = LlamaCase(VARIANT, 3, 11, 11)
LONG = LlamaCase(PLAIN, 1, ATTENTION_TILE * 2 + 9, ATTENTION_TILE * 2 + 11)
KEPT = ("x", "qkv", "attn", "attn_lse", "x_mid", "gate_up", "rstd1", "rstd2")


class TeamModel(Divided, LlamaFloat32):
    """A Llama whose micro-batches are divided."""

    team_kernels = LLAMA_TEAM


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile the kernels before any test waits for threads that call them."""
    rng = np.random.default_rng(0)
    team = TeamModel(SMALL, PLAIN.random_tensors(rng))
    team.divide(1)
    team.forward_of(0)
    team.backward_of(0, SMALL.targets(rng), 1.0, accumulate=False)


@pytest.mark.parametrize("members", [1, 2, 3, 8])
@pytest.mark.parametrize(("case", "chunk"), [(SMALL, 3), (SEVERAL, 10), (LONG, 50)])
def test_a_team_has_the_bits_of_one_thread(case: LlamaCase, chunk: int, members: int) -> None:
    rng = np.random.default_rng(0)
    tensors = case.sizes.random_tensors(rng)
    alone, team = LlamaFloat32(case, tensors, chunk), TeamModel(case, tensors, chunk)
    team.divide(members)
    check_team(alone, team, KEPT, rng)


@pytest.mark.parametrize("frozen", [frozenset({"norm1_weight", "gate_up_weight"}), frozenset({"wte", "norm2_weight"})])
def test_frozen_tensors_change_no_other_bit(frozen: frozenset[str]) -> None:
    rng = np.random.default_rng(1)
    tensors = VARIANT.random_tensors(rng)
    alone, team = LlamaFloat32(SEVERAL, tensors, 10, frozen), TeamModel(SEVERAL, tensors, 10, frozen)
    team.divide(2)
    check_team(alone, team, KEPT, rng)
