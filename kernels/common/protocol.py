"""Kernels that every number format provides.

A number format is a sub-package next to `kernels.float32` that has the modules of `KERNELS` and re-exports their
kernels. A kernel has the same name in every format. Layers have the parameters that their format needs (packed weights,
scratch); whole models have the same parameters everywhere (`ModelKernels`), so callers differ only in the types that
they allocate.

A further architecture is a module next to `gpt2` in every format: it implements `ModelKernels`, and is listed in
`ARCHITECTURES`.
"""

from typing import Protocol, TypeVar

from threadloom.kernels.common.accumulation import AccumulationTicket
from threadloom.kernels.common.team import Team
from threadloom.kernels.compiling import Floats, TokenIds

ARCHITECTURES = ("gpt2", "gpt2_banded", "gpt2_residues", "llama")
"""Modules of a number format that provide `MODEL_KERNELS`, one for each architecture."""

MODEL_KERNELS = ("blocks_forward", "blocks_backward", "head_loss", "head_backward")
"""Kernels of every architecture, as `ModelKernels` declares them."""

KERNELS: dict[str, tuple[str, ...]] = {
    "attention": ("attention_forward", "attention_backward"),
    "banded_head": ("banded_loss", "banded_backward"),
    "cross_entropy": ("cross_entropy_backward", "objective_backward"),
    "embedding": ("embedding_forward", "token_embedding_forward"),
    "gelu": ("gelu_forward", "gelu_backward"),
    "head": ("projection_loss", "projection_backward"),
    "layernorm": ("layernorm_forward", "layernorm_apply", "layernorm_backward"),
    "linear": (
        "linear_forward",
        "linear_residual_forward",
        "linear_backward_input",
        "linear_backward_weight",
        "linear_backward_bias",
        "logits_forward",
        "logits_backward_input",
    ),
    "residue_embedding": ("residue_embedding_forward",),
    "residue_head": ("residue_loss", "residue_backward"),
    "rmsnorm": ("rmsnorm_forward", "rmsnorm_apply", "rmsnorm_backward"),
}
"""Module of a number format → kernels that it provides. A test holds every format to it."""

WeightsT = TypeVar("WeightsT", contravariant=True)
ConstantsT = TypeVar("ConstantsT", contravariant=True)
GradientsT = TypeVar("GradientsT", contravariant=True)
ActivationsT = TypeVar("ActivationsT", contravariant=True)
ScratchT = TypeVar("ScratchT", contravariant=True)


class ModelKernels(Protocol[WeightsT, ConstantsT, GradientsT, ActivationsT, ScratchT]):
    """An architecture in one number format: a module such as `kernels.float32.gpt2`.

    Type parameters: the architecture's weights and activations, and the scratch of its backward pass, in the format;
    its constants (`Gpt2Constants`, `LlamaConstants`) and gradients (`Weights`, `LlamaWeights`), which are the same in
    every format. Gradients are float32. That of a frozen tensor has no elements, and is not computed; if there is one
    tensor per layer, the first axis is still L. All other results have the same bits as if the tensor were trained.
    """

    def blocks_forward(self, weights: WeightsT, acts: ActivationsT, sequences: int, constants: ConstantsT) -> None:
        """Run all blocks on the embeddings, which are in the residual stream of `acts`; fill every activation."""

    def blocks_backward(
        self,
        weights: WeightsT,
        acts: ActivationsT,
        grads: GradientsT,
        scratch: ScratchT,
        sequences: int,
        constants: ConstantsT,
        ticket: AccumulationTicket,
    ) -> None:
        """Run all blocks backwards after `head_backward`; write the gradient of the embeddings to ``scratch.dx``.

        Gradients of the blocks' tensors are written, or added if ``ticket.accumulate``, in the order of `ticket`.
        """

    def head_loss(
        self, weights: WeightsT, acts: ActivationsT, targets: TokenIds, constants: ConstantsT, logits: Floats
    ) -> float:
        """Return the sum of the cross-entropies of all rows; `acts` are no longer valid for a backward pass."""

    def head_backward(
        self,
        weights: WeightsT,
        acts: ActivationsT,
        targets: TokenIds,
        scale: float,
        grads: GradientsT,
        scratch: ScratchT,
        constants: ConstantsT,
        ticket: AccumulationTicket,
    ) -> float:
        """Return the unscaled sum of the cross-entropies; write the scaled gradient of the blocks' output to scratch.

        Gradients of the head's tensors are written, or added if ``ticket.accumulate``, in the order of `ticket`.
        """


class TeamKernels(Protocol[WeightsT, ConstantsT, GradientsT, ActivationsT, ScratchT]):
    """The passes of an architecture by a team of threads, each of whose members calls all of them.

    They have the bits of `ModelKernels` without a ticket, adapters, dropout in the blocks and terms of the loss.
    """

    def team_blocks_forward(
        self, weights: WeightsT, acts: ActivationsT, sequences: int, constants: ConstantsT, team: Team
    ) -> None:
        """Compute the member's part of ``blocks_forward``; the scratch of threads in `acts` is its own."""

    def team_head_backward(
        self,
        weights: WeightsT,
        acts: ActivationsT,
        targets: TokenIds,
        scale: float,
        grads: GradientsT,
        scratch: ScratchT,
        constants: ConstantsT,
        accumulate: bool,
        team: Team,
    ) -> float:
        """Compute the member's part of ``head_backward``; return the sum of the cross-entropies of all rows.

        The scratch of threads in `scratch` is the member's own.
        """

    def team_blocks_backward(
        self,
        weights: WeightsT,
        acts: ActivationsT,
        grads: GradientsT,
        scratch: ScratchT,
        sequences: int,
        constants: ConstantsT,
        accumulate: bool,
        team: Team,
    ) -> None:
        """Compute the member's part of ``blocks_backward``, after ``team_head_backward``."""
