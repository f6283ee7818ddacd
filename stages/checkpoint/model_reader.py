"""Reading models in Hugging Face's layout: one safetensors file, or shards with an index.

The layout of an architecture (`stages.models`) maps the names in the files to views of our tensors, and each tensor is
read into its view block by block, so loading takes the memory of the weights and of one tensor at most.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from threadloom.pipeline import Arena, arena_size
from threadloom.stages.machine import detect
from threadloom.stages.models import (
    Geometry,
    architecture_of,
    huggingface_shapes,
    parameter_count,
    parameter_shapes,
)
from threadloom.stages.storage import (
    ADAPTER_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MODEL_FILE,
    CheckpointError,
    TensorFile,
    open_sharded_tensors,
    open_tensors,
    read_geometry,
)

Floats = NDArray[np.float32]

PREFIXES = ("_orig_mod.", "module.", "model.", "transformer.")
"""Prefixes of tensor names: of torch.compile, DistributedDataParallel, Lightning and others, GPT2LMHeadModel."""

_UNSUPPORTED = {
    "pytorch_model.bin": "a pickle, which can run code when it is opened",
    "pytorch_model.bin.index.json": "pickles, which can run code when they are opened",
    "consolidated.safetensors": "a model with the names of Mistral's own format",
    ADAPTER_FILE: "an adapter without the model that it changes",
}
"""File of a model that is not read → what it is."""


def load_model(folder: Path) -> tuple[Geometry, Arena]:
    """Read a model in Hugging Face's layout into a new arena.

    The names may have any of `PREFIXES`, or none; constants in older files are ignored, and a tied `lm_head.weight` may
    be present if it equals the token embedding. Names, shapes and memory are checked before memory is allocated; values
    that are not finite are reported as a warning. Raises `CheckpointError`.
    """
    geometry = read_geometry(folder / CONFIG_FILE)
    with _open_model(folder) as file:
        names = _names_in_file(file, geometry)
        require_memory(folder, geometry)
        weights = Arena(parameter_shapes(geometry))
        _read_tensors(file, geometry, names, weights)
    warn_of_values(folder, _views(weights, geometry))
    return geometry, weights


class FolderWeights:
    """The weights of the model in a folder, for a geometry that may have a shorter context, and adapters.

    Implements `InitialWeights`, without the tensors of adapters. Checks and warns as `load_model`.
    """

    def __init__(self, folder: Path, geometry: Geometry) -> None:
        """Raise `CheckpointError` if the model cannot be read, or has other sizes."""
        self._folder, self._geometry = folder, replace(geometry, lora=None)
        self._found = found = read_geometry(folder / CONFIG_FILE)
        if replace(found, context=geometry.context) != self._geometry or found.context < geometry.context:
            raise CheckpointError(
                folder / CONFIG_FILE,
                expected=f"a model of {geometry}",
                got=f"one of {found}",
                cause="the folder has been replaced since the run was configured, or the run has other sizes",
                hint="use the folder that the settings `model.*` come from",
            )

    def write(self, weights: Mapping[str, Floats]) -> None:
        """Read the given tensors; raises `CheckpointError`."""
        with _open_model(self._folder) as file:
            names = _names_in_file(file, self._found)
            _read_tensors(file, self._geometry, names, weights)
        warn_of_values(self._folder, _views(weights, self._geometry))

    def matrices(self, name: str) -> Iterator[Floats]:
        """Read a tensor matrix after matrix into one array; raises `CheckpointError`."""
        shape = parameter_shapes(self._geometry)[name]
        parts = architecture_of(self._geometry).huggingface.parts(self._geometry)
        matrix, wrong = np.empty(shape[-2:], np.float32), list[str]()
        with _open_model(self._folder) as file:
            names = _names_in_file(file, self._found)
            for layer in range(shape[0]) if len(shape) == 3 else [None]:
                for stored, part in parts.items():
                    if (part.tensor, part.layer) == (name, layer):
                        view = replace(part, layer=None).view(matrix)
                        file.read(names[stored], view)
                        _check_tied_to(file, self._geometry, names, stored, view)
                        wrong += [stored] if not _is_finite(view) else []
                yield matrix
        _warn_of_names(self._folder, wrong)


def read_model(path: Path, geometry: Geometry, weights: Mapping[str, Floats]) -> None:
    """Read a `model.safetensors` into weights of a known geometry; raises `CheckpointError` if it does not fit."""
    with open_tensors(path) as file:
        _read_tensors(file, geometry, _names_in_file(file, geometry), weights)


def _open_model(folder: Path) -> AbstractContextManager[TensorFile]:
    """Open the tensors in `folder`; the error for a model in another format explains how to convert it."""
    path = folder / MODEL_FILE
    if path.exists():
        return open_tensors(path)
    if (folder / INDEX_FILE).exists():
        return open_sharded_tensors(folder / INDEX_FILE)
    other = next((name for name in _UNSUPPORTED if (folder / name).exists()), None)
    other = other or next((file.name for file in folder.glob("*.gguf")), None)
    if other:
        raise CheckpointError(
            path,
            expected=f"the model as {MODEL_FILE}, or as shards with {INDEX_FILE}",
            got=other,
            cause=_UNSUPPORTED.get(other, "another format"),
            hint="open it with transformers (an adapter with peft, and merge it), and save the model with "
            "`model.save_pretrained(directory)`",
        )
    return open_tensors(path)


def _names_in_file(file: TensorFile, geometry: Geometry) -> dict[str, str]:
    """Return Hugging Face's name → name in the file; raises `CheckpointError` if the file does not fit.

    The names in the file may have the prefixes in `PREFIXES`, and may lack that of the layout. A file with the output
    projection alone of the two tensors that are tied has the token embedding under its name.
    """
    layout, shapes = architecture_of(geometry).huggingface, huggingface_shapes(geometry)
    embedding, head = layout.token_embedding, layout.output_projection
    theirs = {_bare(name): name for name in file.shapes}
    names = {name: theirs.get(_bare(name), name) for name in (*shapes, head)}
    ignored = {name for bare, name in theirs.items() if layout.ignored.fullmatch(bare)}
    hint = "use the file with the model that it was saved from, or another file"
    if head not in shapes:
        ignored.add(names[head])
        if names[embedding] not in file.shapes and names[head] in file.shapes:
            names[embedding] = names[head]
    elif names[head] not in file.shapes:
        hint = 'if its output projection is the token embedding, set "tie_word_embeddings": true in config.json'
    transposed = any(
        shape != shape[::-1] and file.shapes.get(names[name]) == shape[::-1] for name, shape in shapes.items()
    )
    file.require(
        {names[name]: shape for name, shape in shapes.items()},
        ignored=frozenset(ignored),
        cause="its matrices are transposed, as those of nanoGPT or of JAX"
        if transposed
        else f"the file is of another model than one of {geometry}",
        hint=hint,
    )
    return names


def _bare(name: str) -> str:
    """Return the name of a tensor without the prefixes of the modules that contain the model."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def require_memory(folder: Path, geometry: Geometry, needed: int | None = None) -> None:
    """Raise `CheckpointError` if the bytes `needed`, by default those of float32, exceed the available memory."""
    number_format = "float32" if needed is None else "this format"
    needed = 4 * arena_size(parameter_shapes(geometry)) if needed is None else needed
    available = detect().memory_available
    if available is not None and needed > available:
        raise CheckpointError(
            folder,
            expected=f"a model that fits into the {available / 1e6:,.0f} MB of memory that are available",
            got=f"{parameter_count(geometry):,} parameters, which take {needed / 1e6:,.0f} MB in {number_format}",
            cause="the system would stop the process without a message",
            hint="use a smaller model, or a machine with more memory",
        )


def _read_tensors(
    file: TensorFile, geometry: Geometry, names: Mapping[str, str], weights: Mapping[str, Floats]
) -> None:
    for name, view in _views(weights, geometry).items():
        file.read(names[name], view)
        _check_tied_to(file, geometry, names, name, view)


def _views(weights: Mapping[str, Floats], geometry: Geometry) -> dict[str, Floats]:
    """Return name in the layout → view of one of the given tensors."""
    parts = architecture_of(geometry).huggingface.parts(geometry)
    return {name: part.view(weights[part.tensor]) for name, part in parts.items() if part.tensor in weights}


def _check_tied_to(file: TensorFile, geometry: Geometry, names: Mapping[str, str], name: str, tensor: Floats) -> None:
    """Raise `CheckpointError` if `name` is the token embedding, and the file has another tied output projection."""
    layout = architecture_of(geometry).huggingface
    tied = layout.output_projection not in layout.parts(geometry)
    if name == layout.token_embedding and tied and names[layout.output_projection] in file.shapes:
        _check_tied(file, names[layout.output_projection], name, tensor)


def _check_tied(file: TensorFile, projection_name: str, embedding_name: str, embedding: Floats) -> None:
    """Raise `CheckpointError` unless the output projection equals the tensor that it is tied to."""
    got = "different values"
    if file.shapes[projection_name] == embedding.shape:
        projection = np.empty_like(embedding)
        file.read(projection_name, projection)
        if np.array_equal(projection, embedding, equal_nan=True):
            return
    else:
        got = f"shape {file.shapes[projection_name]} instead of {embedding.shape}"
    raise CheckpointError(
        file.path,
        expected=f"{projection_name} equal to {embedding_name}",
        got=got,
        cause="the output projection is not tied to the token embedding, as config.json says",
        hint='use a model with tied embeddings; for the Llama family, "tie_word_embeddings": false in config.json '
        "loads both",
    )


def _is_finite(values: Floats) -> bool:
    """Return True unless one of the values is NaN or infinite; takes no memory."""
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(values.min()) and np.isfinite(values.max()))  # NaN if one of the values is


def warn_of_values(folder: Path, views: Mapping[str, Floats]) -> None:
    """Log the names of the tensors that contain NaN or infinity, which the model's results would be too."""
    _warn_of_names(folder, [name for name, view in views.items() if not _is_finite(view)])


def _warn_of_names(folder: Path, wrong: Sequence[str]) -> None:
    if wrong:
        shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        logger.warning("{}: NaN or infinity in {}: the model's results will be NaN", folder, shown)
