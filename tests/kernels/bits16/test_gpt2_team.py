"""GPT-2 in bfloat16 by a team of threads: the bits of one thread, whatever the sizes, on every path of the products."""

import numpy as np
import pytest

from tests.kernels.bits16.formats import BF16
from tests.kernels.bits16.model import Model16, random_tensors
from tests.kernels.bits16.support import on_path, paths_here
from tests.kernels.bits16.team import TeamModel16
from tests.kernels.support import Sizes
from tests.kernels.team import check_team
from threadloom.kernels.common import ATTENTION_TILE
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.simd.features import DotPath

pytestmark = [
    pytest.mark.timeout(600),  # the first run compiles kernels
    pytest.mark.skipif(not JIT_ENABLED, reason="there are no teams without the compiler"),
]

SMALL = Sizes(vocabulary=5, context=9, layers=2, heads=3, channels=24, sequences=1, tokens=7)
# A rest of tiles and vectors everywhere, several tiles of attention, several chunks, and several slices of tokens.
LARGE = Sizes(
    vocabulary=167, context=ATTENTION_TILE * 2 + 11, layers=2, heads=5, channels=120, sequences=1,
    tokens=ATTENTION_TILE * 2 + 9,
)  # fmt: skip
SEVERAL = Sizes(vocabulary=37, context=31, layers=3, heads=2, channels=34, sequences=3, tokens=31)
KEPT = ("x", "normed1", "rstd1", "qkv", "attn", "attn_lse", "normed2", "rstd2", "fc")


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile the kernels before any test waits for threads that call them."""
    rng = np.random.default_rng(0)
    team = TeamModel16(SMALL, BF16, random_tensors(SMALL, rng))
    team.divide(1)
    team.forward_of(0)
    team.backward_of(0, SMALL.targets(rng), 1.0, accumulate=False)


@pytest.mark.parametrize("members", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("sizes", "chunk", "small"),
    [(SMALL, 3, False), (LARGE, 50, False), (LARGE, 500, True), (SEVERAL, 40, True)],
)
def test_a_team_has_the_bits_of_one_thread(sizes: Sizes, chunk: int, small: bool, members: int) -> None:
    """With the packed transposes and every input of the GELU, and without."""
    rng = np.random.default_rng(0)
    tensors = random_tensors(sizes, rng)
    alone = Model16(sizes, BF16, tensors, chunk, slice_width=64, small=small)
    team = TeamModel16(sizes, BF16, tensors, chunk, slice_width=64, small=small)
    team.divide(members)
    check_team(alone, team, KEPT, rng)


@pytest.mark.parametrize("path", paths_here(), ids=lambda path: path.name)
def test_it_has_them_on_every_path(path: DotPath) -> None:
    rng = np.random.default_rng(2)
    tensors = random_tensors(LARGE, rng)
    alone, team = (
        Model16(LARGE, BF16, tensors, 50, slice_width=64),
        TeamModel16(LARGE, BF16, tensors, 50, slice_width=64),
    )
    with on_path(path):
        team.divide(3)
        check_team(alone, team, KEPT, rng)


@pytest.mark.parametrize(
    "frozen",
    [frozenset({"ln1_weight", "fc_weight", "fc_bias", "qkv_bias", "lnf_bias"}), frozenset({"wte", "ln2_bias"})],
)
def test_frozen_tensors_change_no_other_bit(frozen: frozenset[str]) -> None:
    rng = np.random.default_rng(1)
    tensors = random_tensors(SEVERAL, rng)
    alone, team = (
        Model16(SEVERAL, BF16, tensors, 10, frozen=frozen),
        TeamModel16(SEVERAL, BF16, tensors, 10, frozen=frozen),
    )
    team.divide(2)
    check_team(alone, team, KEPT, rng)
