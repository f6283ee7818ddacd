"""Models whose micro-batches a team of threads divides, and the comparison with those of one thread."""

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from tests.kernels.model import MicroBatchModel
from tests.kernels.support import flat_ids
from tests.reference import Ids
from threadloom.kernels.common import ATTENTION_TILE, IGNORED_TARGET, TeamKernels, make_team

WAIT = 30.0


def together(members: int, work: Callable[[int], object]) -> None:
    """Call `work` for all members at the same time, each in a thread of its own."""
    threads = [threading.Thread(target=work, args=(member,)) for member in range(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


class Divided(MicroBatchModel):
    """A mixin: a model whose passes a team divides, beside those of one thread."""

    team_kernels: ClassVar[TeamKernels[Any, Any, Any, Any, Any]]

    def divide(self, members: int) -> None:
        """Make the team, and scratch for each member."""
        self.team = make_team(members, self.sizes.rows, np.zeros(1, np.int64))
        self.own = [self.member_scratch() for _ in self.team]
        self.losses: dict[int, float] = {}

    def member_scratch(self) -> dict[str, Any]:
        """Return the fields of the scratch that a member has for itself."""
        return {"scores": np.full((2, ATTENTION_TILE, self.sizes.context), np.nan, np.float32)}

    def activations_of(self, member: int) -> Any:
        """Return the activations with the member's own scratch."""
        return self.acts._replace(scores=self.own[member]["scores"][0])

    def embed_as(self, alone: MicroBatchModel, ids: Ids) -> None:
        """Write the embeddings to the residual stream; `alone` has passed the same tokens."""
        self.acts.x[0][...] = alone.acts.x[0]

    def forward_of(self, member: int) -> None:
        """Compute a member's part of the forward pass."""
        acts, s = self.activations_of(member), self.sizes
        self.team_kernels.team_blocks_forward(self.weights, acts, s.sequences, s.constants, self.team[member])

    def backward_of(self, member: int, targets: Ids, scale: float, accumulate: bool) -> None:
        """Compute a member's part of the backward pass."""
        w, a, g, s, kernels = self.weights, self.acts, self.grads, self.sizes, self.team_kernels
        team = self.team[member]
        scratch, flat = self.scratch._replace(**self.own[member]), flat_ids(targets)
        self.losses[member] = kernels.team_head_backward(w, a, flat, scale, g, scratch, s.constants, accumulate, team)
        kernels.team_blocks_backward(w, a, g, scratch, s.sequences, s.constants, accumulate, team)

    def pass_by_team(self, ids: Ids, targets: Ids, scale: float, accumulate: bool) -> None:
        """Compute all members' parts of both passes, the embeddings being in place."""
        members = len(self.team)
        together(members, self.forward_of)
        together(members, lambda member: self.backward_of(member, targets, scale, accumulate))
        self.scatter(ids, accumulate)


def results(model: MicroBatchModel, kept: tuple[str, ...]) -> dict[str, bytes]:
    """Return the bits of all gradients and of the activations `kept`."""
    arrays = {**model.grads._asdict(), "dx": model.scratch.dx}
    arrays |= {f"acts.{name}": getattr(model.acts, name) for name in kept}
    return {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}


def check_team(alone: MicroBatchModel, team: Divided, kept: tuple[str, ...], rng: np.random.Generator) -> None:
    """Compare the bits of two micro-batches, the second of which adds its gradients to those of the first."""
    for accumulate in (False, True):
        ids, targets = alone.sizes.ids(rng), alone.sizes.targets(rng)
        targets.reshape(-1)[1] = IGNORED_TARGET
        alone.forward(ids)
        loss = alone.backward(ids, targets, 0.25, accumulate)
        team.embed_as(alone, ids)
        team.pass_by_team(ids, targets, 0.25, accumulate)
        assert team.losses == dict.fromkeys(range(len(team.team)), loss)
        expected = results(alone, kept)
        assert [name for name, bits in results(team, kept).items() if bits != expected[name]] == []
