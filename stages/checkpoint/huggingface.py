"""Writing and reading models in Hugging Face's layout: a directory with `model.safetensors` and `config.json`.

`generation_config.json` and, for a tokenizer in Hugging Face's format, `tokenizer_config.json` name the token that ends
a text.

The layout of an architecture (`stages.models`) maps its names to views of our tensors. The output projection is tied to
the token embedding and not stored. `transformers.GPT2LMHeadModel.from_pretrained` opens such a directory directly.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline import Arena
from threadloom.stages.models import (
    EndOfText,
    Geometry,
    HuggingFaceLayout,
    UnsupportedModelError,
    architecture_of,
    geometry_of_huggingface,
    huggingface_shapes,
    huggingface_views,
    parameter_shapes,
)
from threadloom.stages.storage import (
    CheckpointError,
    FileDigest,
    TensorFile,
    open_tensors,
    plain_json,
    write_bytes,
    write_tensors,
)

Floats = NDArray[np.float32]

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
PREFIXES = ("_orig_mod.", "module.", "model.", "transformer.")
"""Prefixes of tensor names: of torch.compile, DistributedDataParallel, Lightning and others, GPT2LMHeadModel."""


class _EndIds(msgspec.Struct):
    """The part of config.json and of generation_config.json that ends a text."""

    eos_token_id: int | list[int] | None = None


def write_model(
    folder: Path, weights: Mapping[str, Floats], geometry: Geometry, end_of_text: EndOfText | None = None
) -> dict[str, FileDigest]:
    """Write the files of a model to `folder`, an existing directory without them; returns file name → digest."""
    layout = architecture_of(geometry).huggingface
    number = None if end_of_text is None else end_of_text.id
    files: dict[str, dict[str, Any]] = {
        CONFIG_FILE: layout.config(geometry, number),
        GENERATION_FILE: {"bos_token_id": number, "eos_token_id": number},
    }
    if end_of_text is not None:
        files[TOKENIZER_CONFIG_FILE] = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is
            "bos_token": end_of_text.token,
            "eos_token": end_of_text.token,
            "model_max_length": geometry.context,
            "clean_up_tokenization_spaces": False,
        }
    digests = {MODEL_FILE: write_tensors(folder / MODEL_FILE, huggingface_views(weights, layout), {"format": "pt"})}
    for name, content in files.items():
        digests[name] = write_bytes(folder / name, (json.dumps(content, indent=2) + "\n").encode())
    return digests


def read_end_ids(folder: Path) -> frozenset[int]:
    """Return the ids that end a text, from `generation_config.json` or else `config.json`; empty if neither has any.

    Raises `CheckpointError` for a file that is not JSON, or that cannot be read.
    """
    for name in (GENERATION_FILE, CONFIG_FILE):
        try:
            found = msgspec.json.decode(plain_json((folder / name).read_bytes()), type=_EndIds).eos_token_id
        except FileNotFoundError:
            continue
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                folder / name,
                expected="JSON with `eos_token_id` a number, a list of numbers, or null",
                got=f"{type(error).__name__}: {error}",
                hint="restore the file from a copy" if name == CONFIG_FILE else "restore the file, or remove it",
            ) from error
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()


def read_geometry(path: Path) -> Geometry:
    """Read a `config.json`; raises `CheckpointError` if no architecture here computes the model."""
    try:
        return geometry_of_huggingface(plain_json(path.read_bytes()))
    except UnsupportedModelError as error:
        hint = "use a GPT-2 model of the published architecture"
        raise CheckpointError(path, expected=error.expected, got=error.got, cause=error.cause, hint=hint) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            path,
            expected="the configuration of a GPT-2 model as JSON",
            got=f"{type(error).__name__}: {error}",
            cause="the directory holds another kind of model, or is incomplete",
            hint="use a directory written by `GPT2LMHeadModel.save_pretrained`",
        ) from error


def load_model(folder: Path) -> tuple[Geometry, Arena]:
    """Read a GPT-2 model in Hugging Face's layout into a new arena.

    The names may have any of `PREFIXES`, or none; causal masks in older files are ignored, and `lm_head.weight` may be
    present if it equals the token embedding. Names and shapes are checked before memory is allocated. Raises
    `CheckpointError`.
    """
    geometry = read_geometry(folder / CONFIG_FILE)
    with _open_model(folder) as file:
        names = _check_model(file, geometry)
        weights = Arena(parameter_shapes(geometry))
        _read_tensors(file, architecture_of(geometry).huggingface, names, weights)
    return geometry, weights


def read_model(path: Path, geometry: Geometry, weights: Mapping[str, Floats]) -> None:
    """Read a `model.safetensors` into weights of a known geometry; raises `CheckpointError` if it does not fit."""
    with open_tensors(path) as file:
        _read_tensors(file, architecture_of(geometry).huggingface, _check_model(file, geometry), weights)


def _open_model(folder: Path) -> AbstractContextManager[TensorFile]:
    """Open the tensors in `folder`; the error for a sharded or pickled model explains how to convert it."""
    path = folder / MODEL_FILE
    other = next((name for name in (f"{MODEL_FILE}.index.json", "pytorch_model.bin") if (folder / name).exists()), None)
    if other and not path.exists():
        raise CheckpointError(
            path,
            expected="the model in one safetensors file",
            got=other,
            cause="sharded models and pickles are not supported",
            hint='save it again with `model.save_pretrained(directory, max_shard_size="100GB")`',
        )
    return open_tensors(path)


def _check_model(file: TensorFile, geometry: Geometry) -> dict[str, str]:
    """Return Hugging Face's name → name in the file; raises `CheckpointError` if the file does not fit.

    The names in the file may have the prefixes in `PREFIXES`, and may lack that of the layout.
    """
    layout, shapes = architecture_of(geometry).huggingface, huggingface_shapes(geometry)
    theirs = {_bare(name): name for name in file.shapes}
    names = {name: theirs.get(_bare(name), name) for name in (*shapes, layout.tied[0])}
    constants = {name for bare, name in theirs.items() if layout.ignored.fullmatch(bare)}
    transposed = any(
        shape != shape[::-1] and file.shapes.get(names[name]) == shape[::-1] for name, shape in shapes.items()
    )
    file.require(
        {names[name]: shape for name, shape in shapes.items()},
        ignored=frozenset(constants | {names[layout.tied[0]]}),
        cause="its matrices are transposed, as those of nanoGPT and torch.nn.Linear"
        if transposed
        else f"the file is of another model than one of {geometry}",
    )
    return names


def _bare(name: str) -> str:
    """Return the name of a tensor without the prefixes of the modules that contain the model."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def _read_tensors(
    file: TensorFile, layout: HuggingFaceLayout, names: Mapping[str, str], weights: Mapping[str, Floats]
) -> None:
    for name, view in huggingface_views(weights, layout).items():
        file.read(names[name], view)
    if names[layout.tied[0]] in file.shapes:
        _check_tied(file, layout, names[layout.tied[0]], weights)


def _check_tied(
    file: TensorFile, layout: HuggingFaceLayout, projection_name: str, weights: Mapping[str, Floats]
) -> None:
    """Raise `CheckpointError` unless the output projection equals the tensor that it is tied to."""
    name = layout.tied[1]
    got = "different values"
    if file.shapes[projection_name] == weights[name].shape:
        projection = np.empty_like(weights[name])
        file.read(projection_name, projection)
        if np.array_equal(projection, weights[name]):
            return
    else:
        got = f"shape {file.shapes[projection_name]} instead of {weights[name].shape}"
    raise CheckpointError(
        file.path,
        expected=f"{projection_name} equal to {layout.prefix}{layout.names[name]}",
        got=got,
        cause="the output projection is not tied to the token embedding",
        hint="use a model with tied embeddings",
    )
