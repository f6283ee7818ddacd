"""The architectures in 16 bits, each the module of its model kernels."""

from threadloom.kernels.bits16 import gpt2
from threadloom.kernels.bits16.tensors import Activations16, Scratch16, Weights16
from threadloom.kernels.common import Gpt2Constants, ModelKernels, Weights

GPT2: ModelKernels[Weights16, Gpt2Constants, Weights, Activations16, Scratch16] = gpt2
