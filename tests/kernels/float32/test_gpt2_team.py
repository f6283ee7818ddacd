"""GPT-2 by a team of threads: the bits of one thread, whatever the sizes; waits that end."""

import threading

import numpy as np
import pytest

from tests.kernels.model import Model
from tests.kernels.support import Sizes
from tests.kernels.team import WAIT, Divided, check_team
from threadloom.kernels.common import ATTENTION_TILE, Team, make_team, meet
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.float32 import GPT2_TEAM

pytestmark = [
    pytest.mark.timeout(300),  # the first run compiles kernels
    pytest.mark.skipif(not JIT_ENABLED, reason="NumPy rounds a part of a product differently"),
]

SMALL = Sizes(vocabulary=5, context=9, layers=2, heads=3, channels=12, sequences=1, tokens=7)
# Whole vectors with a rest everywhere, several tiles of attention, and a head of several chunks.
LARGE = Sizes(
    vocabulary=67, context=ATTENTION_TILE * 2 + 11, layers=2, heads=5, channels=120, sequences=1,
    tokens=ATTENTION_TILE * 2 + 9,
)  # fmt: skip
SEVERAL = Sizes(vocabulary=13, context=11, layers=1, heads=2, channels=34, sequences=3, tokens=11)
KEPT = ("x", "qkv", "attn", "attn_lse", "x_mid", "fc", "ln1_mean", "ln1_rstd", "ln2_mean", "ln2_rstd")


class TeamModel(Divided, Model):
    """A GPT-2 whose micro-batches are divided."""

    team_kernels = GPT2_TEAM


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile the kernels before any test waits for threads that call them."""
    rng = np.random.default_rng(0)
    team = TeamModel(SEVERAL, SEVERAL.tensors(rng))
    team.divide(1)
    team.forward_of(0)
    team.backward_of(0, SEVERAL.targets(rng), 1.0, accumulate=False)
    meet(team.team[0])


@pytest.mark.parametrize("members", [1, 2, 3, 8])
@pytest.mark.parametrize(("sizes", "chunk"), [(SMALL, 3), (LARGE, 50), (LARGE, 500), (SEVERAL, 10)])
def test_a_team_has_the_bits_of_one_thread(sizes: Sizes, chunk: int, members: int) -> None:
    rng = np.random.default_rng(0)
    tensors = sizes.tensors(rng)
    alone, team = Model(sizes, tensors, chunk), TeamModel(sizes, tensors, chunk)
    team.divide(members)
    check_team(alone, team, KEPT, rng)


@pytest.mark.parametrize(
    "frozen", [frozenset({"ln1_weight", "fc_weight", "qkv_bias", "lnf_bias"}), frozenset({"wte", "ln2_bias"})]
)
def test_frozen_tensors_change_no_other_bit(frozen: frozenset[str]) -> None:
    rng = np.random.default_rng(1)
    tensors = SEVERAL.tensors(rng)
    alone, team = Model(SEVERAL, tensors, 10, frozen), TeamModel(SEVERAL, tensors, 10, frozen)
    team.divide(2)
    check_team(alone, team, KEPT, rng)


def test_a_member_waits_for_all_others() -> None:
    team = make_team(3, 1, np.zeros(1, np.int64))
    come: list[int] = []

    def come_to(member: int) -> None:
        meet(team[member])
        come.append(member)

    threads = [threading.Thread(target=come_to, args=(member,)) for member in (0, 2)]
    for thread in threads:
        thread.start()
    while team[0].counts[0, 0] + team[0].counts[2, 0] < 2:  # both are at the meeting
        threading.Event().wait(0.001)
    assert come == []
    meet(team[1])
    for thread in threads:
        thread.join(WAIT)
    assert sorted(come) == [0, 2]


def test_a_stop_ends_the_waits() -> None:
    stop = np.zeros(1, np.int64)
    team: tuple[Team, ...] = make_team(2, 1, stop)
    thread = threading.Thread(target=meet, args=(team[0],))
    thread.start()
    while team[0].counts[0, 0] == 0:
        threading.Event().wait(0.001)
    assert thread.is_alive()
    stop[0] = 1
    thread.join(WAIT)
    assert not thread.is_alive()
