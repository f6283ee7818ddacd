"""The Llama family in bfloat16 by a team of threads: the bits of one thread, in every variant, whatever the sizes."""

from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.bits16.formats import BF16
from tests.kernels.bits16.llama_model import Llama16, random_tensors
from tests.kernels.bits16.support import on_path, paths_here
from tests.kernels.bits16.team import TeamLlama16
from tests.kernels.llama_support import LlamaCase
from tests.kernels.team import check_team
from tests.reference import LlamaSizes
from threadloom.kernels.common import ATTENTION_TILE
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.simd.features import DotPath

pytestmark = [
    pytest.mark.timeout(600),  # the first run compiles kernels
    pytest.mark.skipif(not JIT_ENABLED, reason="there are no teams without the compiler"),
]

PLAIN = LlamaSizes(vocabulary=167, layers=2, channels=90, heads=6, kv_heads=3, head_size=18, mlp_width=131)
VARIANT = replace(
    PLAIN, layers=3, kv_heads=1, tied=not PLAIN.tied, qkv_bias=True, attn_proj_bias=True, mlp_bias=True,
    layers_without_rotary=frozenset({1}),
)  # fmt: skip
SMALL = LlamaCase(PLAIN, 1, 7, 9)
SEVERAL = LlamaCase(VARIANT, 3, 31, 31)
LONG = LlamaCase(PLAIN, 1, ATTENTION_TILE * 2 + 9, ATTENTION_TILE * 2 + 11)
KEPT = ("x", "normed1", "rstd1", "qkv", "attn", "attn_lse", "normed2", "rstd2", "gate_up")


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile the kernels before any test waits for threads that call them."""
    rng = np.random.default_rng(0)
    team = TeamLlama16(SMALL, BF16, random_tensors(SMALL, rng))
    team.divide(1)
    team.forward_of(0)
    team.backward_of(0, SMALL.targets(rng), 1.0, accumulate=False)


@pytest.mark.parametrize("members", [1, 2, 3, 8])
@pytest.mark.parametrize(("case", "chunk", "small"), [(SMALL, 3, False), (SEVERAL, 40, True), (LONG, 50, False)])
def test_a_team_has_the_bits_of_one_thread(case: LlamaCase, chunk: int, small: bool, members: int) -> None:
    """With the packed transposes and every input of the gate, and without."""
    rng = np.random.default_rng(0)
    tensors = random_tensors(case, rng)
    alone, team = (
        Llama16(case, BF16, tensors, chunk, slice_width=64, small=small),
        TeamLlama16(case, BF16, tensors, chunk, slice_width=64, small=small),
    )
    team.divide(members)
    check_team(alone, team, KEPT, rng)


@pytest.mark.parametrize("path", paths_here(), ids=lambda path: path.name)
def test_it_has_them_on_every_path(path: DotPath) -> None:
    rng = np.random.default_rng(2)
    tensors = random_tensors(LONG, rng)
    alone, team = Llama16(LONG, BF16, tensors, 50, slice_width=64), TeamLlama16(LONG, BF16, tensors, 50, slice_width=64)
    with on_path(path):
        team.divide(3)
        check_team(alone, team, KEPT, rng)


@pytest.mark.parametrize("frozen", [frozenset({"norm1_weight", "gate_up_weight"}), frozenset({"wte", "norm2_weight"})])
def test_frozen_tensors_change_no_other_bit(frozen: frozenset[str]) -> None:
    rng = np.random.default_rng(1)
    tensors = random_tensors(SEVERAL, rng)
    alone, team = (
        Llama16(SEVERAL, BF16, tensors, 10, frozen=frozen),
        TeamLlama16(SEVERAL, BF16, tensors, 10, frozen=frozen),
    )
    team.divide(2)
    check_team(alone, team, KEPT, rng)
