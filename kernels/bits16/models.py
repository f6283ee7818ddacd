"""The architectures in 16 bits, each the module of its model kernels."""

from threadloom.kernels.bits16 import gpt2, llama
from threadloom.kernels.bits16.tensors import (
    Activations16,
    LlamaActivations16,
    LlamaScratch16,
    LlamaWeights16,
    Scratch16,
    Weights16,
)
from threadloom.kernels.common import Gpt2Constants, LlamaConstants, LlamaWeights, ModelKernels, Weights

GPT2: ModelKernels[Weights16, Gpt2Constants, Weights, Activations16, Scratch16] = gpt2
LLAMA: ModelKernels[LlamaWeights16, LlamaConstants, LlamaWeights, LlamaActivations16, LlamaScratch16] = llama
