"""Models in bfloat16 whose micro-batches a team of threads divides: `tests.kernels.team`, with other scratch."""

from typing import Any

from tests.kernels.bits16.llama_model import Llama16
from tests.kernels.bits16.model import Model16
from tests.kernels.model import MicroBatchModel
from tests.kernels.support import flat_ids
from tests.kernels.team import Divided
from tests.reference import Ids
from threadloom.kernels.bits16 import GPT2_TEAM, LLAMA_TEAM
from threadloom.kernels.bits16.embedding import embedding_forward, token_embedding_forward
from threadloom.kernels.common.documents import NO_BORDERS


class TeamModel16(Divided, Model16):
    """A GPT-2 whose micro-batches are divided."""

    team_kernels = GPT2_TEAM

    def member_scratch(self) -> dict[str, Any]:
        """Return the fields of the scratch that a member has for itself."""
        return {
            "thread": self._thread_scratch(),
            "d_logits_t": self.bits(self._slice, self._chunk),
            "unused": self.floats(3, self.sizes.channels),
        }

    def activations_of(self, member: int) -> Any:
        """Return the activations with the member's own scratch."""
        return self.acts._replace(thread=self.own[member]["thread"])

    def embed_as(self, alone: MicroBatchModel, ids: Ids) -> None:
        """Write the embeddings to the residual stream."""
        wte, wpe = self.weights.packed.wte, self.master.wpe
        embedding_forward(wte, wpe, flat_ids(ids), self.sizes.tokens, NO_BORDERS, self.acts.x)


class TeamLlama16(Divided, Llama16):
    """A Llama whose micro-batches are divided."""

    team_kernels = LLAMA_TEAM

    def member_scratch(self) -> dict[str, Any]:
        """Return the fields of the scratch that a member has for itself."""
        return {"thread": self._thread_scratch(), "d_logits_t": self.bits(self._slice, self._chunk)}

    def activations_of(self, member: int) -> Any:
        """Return the activations with the member's own scratch."""
        return self.acts._replace(thread=self.own[member]["thread"])

    def embed_as(self, alone: MicroBatchModel, ids: Ids) -> None:
        """Write the embeddings to the residual stream."""
        token_embedding_forward(self.weights.packed.wte, flat_ids(ids), self.acts.x)
