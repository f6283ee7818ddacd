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
    TeamKernels,
    Weights,
)
from threadloom.kernels.compiling import Floats
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


GPT2: ModelKernels[Weights, Gpt2Constants, Weights, Activations, Scratch] = gpt2
GPT2_BANDED: ModelKernels[BandedWeights, BandedConstants, BandedWeights, Activations, Scratch]
GPT2_BANDED = gpt2_banded
GPT2_RESIDUES: ModelKernels[Weights, ResidueConstants, Weights, Activations, Scratch] = gpt2_residues
GPT2_DECODE: DecodeKernels[Weights, Gpt2Constants, DecodeScratch] = decode
LLAMA: ModelKernels[LlamaWeights, LlamaConstants, LlamaWeights, LlamaActivations, LlamaScratch] = llama
LLAMA_DECODE: DecodeKernels[LlamaWeights, LlamaConstants, LlamaDecodeScratch] = llama_decode
GPT2_TEAM: TeamKernels[Weights, Gpt2Constants, Weights, Activations, Scratch] = gpt2_team
LLAMA_TEAM: TeamKernels[LlamaWeights, LlamaConstants, LlamaWeights, LlamaActivations, LlamaScratch] = llama_team
