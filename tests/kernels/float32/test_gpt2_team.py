"""GPT-2 by a team of threads: the bits of one thread, whatever the sizes; waits that end."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from tests.kernels.model import Model
from tests.kernels.support import Sizes, flat_ids
from tests.reference import Ids
from threadloom.kernels.common import ATTENTION_TILE, IGNORED_TARGET, Team, make_team, meet
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.float32.gpt2_team import team_blocks_backward, team_blocks_forward, team_head_backward

pytestmark = pytest.mark.timeout(300)  # the first run compiles kernels

WAIT = 30.0
SMALL = Sizes(vocabulary=5, context=9, layers=2, heads=3, channels=12, sequences=1, tokens=7)
# Whole vectors with a rest everywhere, several tiles of attention, and a head of several chunks.
LARGE = Sizes(
    vocabulary=67, context=ATTENTION_TILE * 2 + 11, layers=2, heads=5, channels=120, sequences=1,
    tokens=ATTENTION_TILE * 2 + 9,
)  # fmt: skip
SEVERAL = Sizes(vocabulary=13, context=11, layers=1, heads=2, channels=34, sequences=3, tokens=11)


def together(members: int, work: Callable[[int], object]) -> None:
    """Call `work` for all members at the same time, each in a thread of its own."""
    threads = [threading.Thread(target=work, args=(member,)) for member in range(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile the kernels before any test waits for threads that call them."""
    tensors = SEVERAL.tensors(np.random.default_rng(0))
    team = TeamModel(SEVERAL, tensors)
    team.divide(1, SEVERAL.context)
    team.forward_of(0)
    team.backward_of(0, SEVERAL.targets(np.random.default_rng(0)), 1.0, accumulate=False)
    meet(team.team[0])


class TeamModel(Model):
    """A model whose micro-batches are divided among the members of a team."""

    def divide(self, members: int, scores: int) -> None:
        """Make the team, and scratch for each member."""
        self.stop = np.zeros(1, np.int64)
        self.team = make_team(members, self.sizes.rows, self.stop)
        self.scores = [np.full((2, ATTENTION_TILE, scores), np.nan, np.float32) for _ in self.team]
        self.losses: dict[int, float] = {}

    def forward_of(self, member: int) -> None:
        acts = self.acts._replace(scores=self.scores[member][0])
        team_blocks_forward(self.weights, acts, self.sizes.sequences, self.sizes.constants, self.team[member])

    def backward_of(self, member: int, targets: Ids, scale: float, accumulate: bool) -> None:
        w, a, g, s, team = self.weights, self.acts, self.grads, self.sizes, self.team[member]
        scratch = self.scratch._replace(scores=self.scores[member])
        self.losses[member] = team_head_backward(w, a, flat_ids(targets), scale, g, scratch, accumulate, team)
        team_blocks_backward(w, a, g, scratch, s.sequences, s.constants, accumulate, team)


def results(model: Model) -> dict[str, bytes]:
    """Return the bits of everything that a backward pass leaves."""
    arrays = {**model.grads._asdict(), "dx": model.scratch.dx}
    kept = ("x", "qkv", "attn", "attn_lse", "x_mid", "fc", "ln1_mean", "ln1_rstd", "ln2_mean", "ln2_rstd")
    arrays |= {f"acts.{name}": getattr(model.acts, name) for name in kept}
    return {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("members", [1, 2, 3, 8])
@pytest.mark.parametrize(("sizes", "chunk"), [(SMALL, 3), (LARGE, 50), (LARGE, 500), (SEVERAL, 10)])
def test_a_team_has_the_bits_of_one_thread(sizes: Sizes, chunk: int, members: int) -> None:
    rng = np.random.default_rng(0)
    tensors = sizes.tensors(rng)
    alone, team = Model(sizes, tensors, chunk), TeamModel(sizes, tensors, chunk)
    team.divide(members, sizes.context)
    for accumulate in (False, True):
        ids, targets = sizes.ids(rng), sizes.targets(rng)
        targets.reshape(-1)[1] = IGNORED_TARGET
        alone.forward(ids)
        loss = alone.backward(ids, targets, 0.25, accumulate)
        team.acts.x[0][...] = alone.acts.x[0]
        together(members, team.forward_of)
        together(members, lambda member, t=targets, a=accumulate: team.backward_of(member, t, 0.25, a))  # type: ignore[misc]
        team.scatter(ids, accumulate)
        assert team.losses == dict.fromkeys(range(members), loss)
        expected = results(alone)
        assert [name for name, bits in results(team).items() if bits != expected[name]] == []


@pytest.mark.parametrize(
    "frozen", [frozenset({"ln1_weight", "fc_weight", "qkv_bias", "lnf_bias"}), frozenset({"wte", "ln2_bias"})]
)
def test_frozen_tensors_change_no_other_bit(frozen: frozenset[str]) -> None:
    rng = np.random.default_rng(1)
    tensors, ids, targets = SEVERAL.tensors(rng), SEVERAL.ids(rng), SEVERAL.targets(rng)
    alone, team = Model(SEVERAL, tensors, 10, frozen), TeamModel(SEVERAL, tensors, 10, frozen)
    team.divide(2, SEVERAL.context)
    for model in (alone, team):
        model.forward(ids)
    loss = alone.backward(ids, targets, 0.25, accumulate=False)
    together(2, lambda member: team.backward_of(member, targets, 0.25, accumulate=False))
    assert team.losses == {0: loss, 1: loss}
    team.scatter(ids, accumulate=False)
    for name, gradient in alone.grads._asdict().items():
        np.testing.assert_array_equal(gradient, getattr(team.grads, name), name)


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
    assert thread.is_alive() or not JIT_ENABLED
    stop[0] = 1
    thread.join(WAIT)
    assert not thread.is_alive()
