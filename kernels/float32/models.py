"""The architectures in float32, each the modules of its model kernels and of its kernels for generation."""

from typing import Protocol, TypeVar

from threadloom.kernels.common import (
    BandedConstants,
    BandedWeights,
    Gpt2Constants,
    LlamaConstants,
    LlamaWeights,
    ModelKernels,
    ResidueConstants,
    Team,
    Weights,
)
from threadloom.kernels.compiling import Floats, TokenIds
from threadloom.kernels.float32 import (
    decode,
    gpt2,
    gpt2_banded,
    gpt2_residues,
    gpt2_team,
    llama,
    llama_decode,
    llama_team,
)
from threadloom.kernels.float32.decode import DecodeScratch
from threadloom.kernels.float32.llama_decode import LlamaDecodeScratch
from threadloom.kernels.float32.one_token import KVCache
from threadloom.kernels.float32.tensors import Activations, LlamaActivations, LlamaScratch, Scratch

WeightsT = TypeVar("WeightsT", contravariant=True)
ActivationsT = TypeVar("ActivationsT", contravariant=True)
ConstantsT = TypeVar("ConstantsT", contravariant=True)
ScratchT = TypeVar("ScratchT", contravariant=True)


class DecodeKernels(Protocol[WeightsT, ConstantsT, ScratchT]):
    """Generation with an architecture: a module such as `kernels.float32.decode`.

    Every member of a team calls each of them, and the bits are the same in a team of any size.
    """

    def decode_token(
        self,
        weights: WeightsT,
        cache: KVCache,
        token: int,
        position: int,
        constants: ConstantsT,
        scratch: ScratchT,
        logits: Floats,
        team: Team,
    ) -> None:
        """Process `token` at `position`, add its keys and values to the cache, and write the next token's logits."""

    def next_logits(
        self, weights: WeightsT, x: Floats, constants: ConstantsT, h: Floats, logits: Floats, team: Team
    ) -> None:
        """Write the logits (V,) that follow `x` (C,), a row that left the last block; `h` (C,) is the member's."""


class TeamKernels(Protocol[WeightsT, ActivationsT, ConstantsT, ScratchT]):
    """The passes of an architecture by a team of threads, each of whose members calls all of them.

    They have the bits of `ModelKernels` without a ticket, adapters, dropout in the blocks and terms of the loss.
    """

    def team_blocks_forward(
        self, weights: WeightsT, acts: ActivationsT, sequences: int, constants: ConstantsT, team: Team
    ) -> None:
        """Compute the member's part of ``blocks_forward``; the scratch of scores in `acts` is its own."""

    def team_head_backward(
        self,
        weights: WeightsT,
        acts: ActivationsT,
        targets: TokenIds,
        scale: float,
        grads: WeightsT,
        scratch: ScratchT,
        constants: ConstantsT,
        accumulate: bool,
        team: Team,
    ) -> float:
        """Compute the member's part of ``head_backward``; return the sum of the cross-entropies of all rows."""

    def team_blocks_backward(
        self,
        weights: WeightsT,
        acts: ActivationsT,
        grads: WeightsT,
        scratch: ScratchT,
        sequences: int,
        constants: ConstantsT,
        accumulate: bool,
        team: Team,
    ) -> None:
        """Compute the member's part of ``blocks_backward``; the scratch of scores in `scratch` is its own."""


GPT2: ModelKernels[Weights, Gpt2Constants, Weights, Activations, Scratch] = gpt2
GPT2_BANDED: ModelKernels[BandedWeights, BandedConstants, BandedWeights, Activations, Scratch]
GPT2_BANDED = gpt2_banded
GPT2_RESIDUES: ModelKernels[Weights, ResidueConstants, Weights, Activations, Scratch] = gpt2_residues
GPT2_DECODE: DecodeKernels[Weights, Gpt2Constants, DecodeScratch] = decode
LLAMA: ModelKernels[LlamaWeights, LlamaConstants, LlamaWeights, LlamaActivations, LlamaScratch] = llama
LLAMA_DECODE: DecodeKernels[LlamaWeights, LlamaConstants, LlamaDecodeScratch] = llama_decode
GPT2_TEAM: TeamKernels[Weights, Activations, Gpt2Constants, Scratch] = gpt2_team
LLAMA_TEAM: TeamKernels[LlamaWeights, LlamaActivations, LlamaConstants, LlamaScratch] = llama_team
