"""Tests that every number format provides the kernels of `kernels.common.protocol`, under the same names."""

import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest

from threadloom.kernels import bits16, float32
from threadloom.kernels.bits16 import (
    Activations16,
    LlamaActivations16,
    LlamaScratch16,
    LlamaWeights16,
    Scratch16,
    Weights16,
    gpt2 as gpt2_bits16,
    llama as llama_bits16,
)
from threadloom.kernels.common import (
    ARCHITECTURES,
    KERNELS,
    MODEL_KERNELS,
    Gpt2Constants,
    LlamaConstants,
    LlamaWeights,
    ModelKernels,
    Weights,
)
from threadloom.kernels.float32 import (
    Activations,
    LlamaActivations,
    LlamaScratch,
    Scratch,
    gpt2 as gpt2_float32,
    llama as llama_float32,
)

FORMATS = (float32, bits16)
each_format = pytest.mark.parametrize("room", FORMATS, ids=lambda room: room.__name__.rpartition(".")[2])

# mypy checks that the modules implement the protocol.
GPT2_FLOAT32: ModelKernels[Weights, Gpt2Constants, Weights, Activations, Scratch] = gpt2_float32
GPT2_BITS16: ModelKernels[Weights16, Gpt2Constants, Weights, Activations16, Scratch16] = gpt2_bits16
LLAMA_FLOAT32: ModelKernels[LlamaWeights, LlamaConstants, LlamaWeights, LlamaActivations, LlamaScratch] = llama_float32
LLAMA_BITS16: ModelKernels[LlamaWeights16, LlamaConstants, LlamaWeights, LlamaActivations16, LlamaScratch16]
LLAMA_BITS16 = llama_bits16


def parameters(kernel: Any) -> list[str]:
    """Return the names of the parameters of a kernel, compiled or not."""
    return list(inspect.signature(getattr(kernel, "py_func", kernel)).parameters)


@each_format
@pytest.mark.parametrize("module", KERNELS)
def test_a_format_provides_every_kernel(room: ModuleType, module: str) -> None:
    source = importlib.import_module(f"{room.__name__}.{module}")
    for name in KERNELS[module]:
        assert getattr(room, name) is getattr(source, name)


@each_format
@pytest.mark.parametrize("module", ARCHITECTURES)
def test_an_architecture_has_the_parameters_of_the_protocol(room: ModuleType, module: str) -> None:
    source = importlib.import_module(f"{room.__name__}.{module}")
    for name in MODEL_KERNELS:
        assert ["self", *parameters(getattr(source, name))] == parameters(getattr(ModelKernels, name))


def test_formats_share_all_names_of_layers() -> None:
    """A kernel of the same name in both formats is listed, so that a further format provides it, too."""
    shared = {name for name in vars(float32).keys() & vars(bits16).keys() if inspect.isroutine(kernel_of(name))}
    assert shared - {"prepare_lora"} == {*MODEL_KERNELS, *(name for names in KERNELS.values() for name in names)}


def kernel_of(name: str) -> Any:
    return getattr(getattr(float32, name), "py_func", getattr(float32, name))
