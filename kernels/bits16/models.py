"""The architectures in 16 bits, each the module of its model kernels."""

from threadloom.kernels.bits16 import gpt2, gpt2_banded, gpt2_residues, gpt2_team, llama, llama_team
from threadloom.kernels.bits16.gpt2_banded import BandedWeights16
from threadloom.kernels.bits16.tensors import (
    Activations16,
    LlamaActivations16,
    LlamaScratch16,
    LlamaWeights16,
    Scratch16,
    Weights16,
)
from threadloom.kernels.common import (
    BandedConstants,
    BandedWeights,
    Gpt2Constants,
    LlamaConstants,
    LlamaWeights,
    ModelKernels,
    ResidueConstants,
    TeamKernels,
    Weights,
)

GPT2: ModelKernels[Weights16, Gpt2Constants, Weights, Activations16, Scratch16] = gpt2
GPT2_BANDED: ModelKernels[BandedWeights16, BandedConstants, BandedWeights, Activations16, Scratch16]
GPT2_BANDED = gpt2_banded
GPT2_RESIDUES: ModelKernels[Weights16, ResidueConstants, Weights, Activations16, Scratch16] = gpt2_residues
LLAMA: ModelKernels[LlamaWeights16, LlamaConstants, LlamaWeights, LlamaActivations16, LlamaScratch16] = llama
GPT2_TEAM: TeamKernels[Weights16, Gpt2Constants, Weights, Activations16, Scratch16] = gpt2_team
LLAMA_TEAM: TeamKernels[LlamaWeights16, LlamaConstants, LlamaWeights, LlamaActivations16, LlamaScratch16] = llama_team
