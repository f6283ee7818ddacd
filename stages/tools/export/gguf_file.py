"""Writing a model as a GGUF file for llama.cpp, with the package `gguf`.

Matrices have the number format of the command, vectors and positions float32, as llama.cpp's own converter writes them.
Tensors are converted and written one at a time.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint import ExportedModel
from threadloom.stages.config import ConfigError
from threadloom.stages.data import Tokenizer
from threadloom.stages.models import UnsupportedModelError, huggingface_views
from threadloom.stages.storage import CheckpointError, explain_disk_full, fsync_directory, require_free_space
from threadloom.stages.tools.export.gguf_models import GGUF_MODELS
from threadloom.stages.tools.export.gguf_vocabulary import read_vocabulary

GGUF_FORMATS = {"float32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Name of the command → name of `gguf.GGMLQuantizationType`."""
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
_BLOCK = 32
"""Elements of a row that share a scale in Q8_0."""
_SMALL = 64 << 20
"""Bytes allowed for metadata and vocabulary."""

Floats = NDArray[np.float32]


def write_gguf(model: ExportedModel, tokenizer: Tokenizer, out: Path, dtype: str) -> None:
    """Write a model to a new file, which is complete or absent.

    Raises ConfigError without the package `gguf`, CheckpointError for a model that GGUF cannot express, TokenizerError
    for a tokenizer that llama.cpp does not have, and errors of the operating system.
    """
    gguf = _library()
    architecture = GGUF_MODELS[model.geometry.architecture]
    try:
        name = architecture.name(model.geometry)
    except UnsupportedModelError as error:
        raise CheckpointError(
            out, expected=error.expected, got=error.got, cause=error.cause, hint=error.hint
        ) from error
    vocabulary = read_vocabulary(model.folder, tokenizer, model.geometry.vocabulary)
    tensors = _tensors(model, gguf, name)
    stored = {key: _format_of(key, tensor, GGUF_FORMATS[dtype]) for key, tensor in tensors.items()}
    needed = 4 * sum(tensor.size for tensor in tensors.values()) + _SMALL
    out = out.absolute()
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    with explain_disk_full(out, needed):
        require_free_space(out.parent, needed)
        try:
            writer = gguf.GGUFWriter(partial, name)
            writer.add_name(out.stem)
            writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[GGUF_FORMATS[dtype]]])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            architecture.write_metadata(writer, model.geometry)
            vocabulary.write(writer)
            _write_tensors(writer, gguf, tensors, stored)
            _sync(partial)
            partial.rename(out)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    fsync_directory(out.parent)


def _library() -> Any:
    """Return the package `gguf`; raises ConfigError if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "the package gguf",
            expected="to be installed, for a file that ends in .gguf",
            got=str(error),
            hint="pip install 'threadloom[gguf]'",
        ) from error
    return gguf


def _tensors(model: ExportedModel, gguf: Any, name: str) -> dict[str, Floats]:
    """Return name in GGUF → tensor as it is stored, in float32; most are views."""
    architecture = GGUF_MODELS[model.geometry.architecture]
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(number, model.geometry.layers)
    tensors = {
        names.get_name(key, try_suffixes=(".weight", ".bias")): architecture.converted(key, view, model.geometry)
        for key, view in huggingface_views(model.weights, model.geometry).items()
    }
    return tensors | architecture.further_tensors(model.geometry)


def _format_of(name: str, tensor: Floats, wanted: str) -> str:
    """Return the format of a tensor: float32 for vectors and positions, F16 for rows that Q8_0 cannot divide."""
    if tensor.ndim < 2 or name == "position_embd.weight":
        return "F32"
    return "F16" if wanted == "Q8_0" and tensor.shape[-1] % _BLOCK else wanted


def _write_tensors(writer: Any, gguf: Any, tensors: dict[str, Floats], stored: dict[str, str]) -> None:
    types = gguf.GGMLQuantizationType
    for name, tensor in tensors.items():
        kind = types[stored[name]]
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
        size = int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    quantize: Callable[..., NDArray[Any]] = gguf.quants.quantize
    for name, tensor in tensors.items():
        writer.write_tensor_data(np.ascontiguousarray(quantize(np.ascontiguousarray(tensor), types[stored[name]])))
    writer.close()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
