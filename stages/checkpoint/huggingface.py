"""Writing models in Hugging Face's layout: a directory with `model.safetensors` and `config.json`.

`generation_config.json` and, for a tokenizer in Hugging Face's format, `tokenizer_config.json` name the token that ends
a text.

The layout of an architecture (`stages.models`) maps its names to views of our tensors. The output projection is tied to
the token embedding and not stored. `transformers.GPT2LMHeadModel.from_pretrained` opens such a directory directly.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models import EndOfText, Geometry, huggingface_config, huggingface_parts, huggingface_views
from threadloom.stages.storage import (
    CONFIG_FILE,
    MODEL_FILE,
    CheckpointError,
    FileDigest,
    plain_json,
    write_bytes,
    write_tensors,
)

Floats = NDArray[np.float32]

GENERATION_FILE = "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


class _EndIds(msgspec.Struct):
    """The part of config.json and of generation_config.json that ends a text."""

    eos_token_id: int | list[int] | None = None


def write_model(
    folder: Path,
    weights: Mapping[str, Floats],
    geometry: Geometry,
    end_of_text: EndOfText | None = None,
    came_in: Path | None = None,
    stored_rows: Mapping[str, NDArray[np.int32]] | None = None,
) -> dict[str, FileDigest]:
    """Write the files of a model to `folder`, an existing directory without weights; returns file name → digest.

    Files of the tokenizer that are there already, since they came with the model, are kept. For `came_in` see
    `write_configuration`. `stored_rows` are the rows of some of our tensors in the order in which they are written.
    """
    views, stored_rows = huggingface_views(weights, geometry), stored_rows or {}
    rows = {name: stored_rows[ours] for name, ours in huggingface_parts(geometry).items() if ours in stored_rows}
    digests = {MODEL_FILE: write_tensors(folder / MODEL_FILE, views, {"format": "pt"}, rows=rows)}
    return digests | write_configuration(folder, geometry, end_of_text, came_in)


def write_configuration(
    folder: Path,
    geometry: Geometry,
    end_of_text: EndOfText | None,
    came_in: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, FileDigest]:
    """Write the JSON files of a model that `folder` does not have; returns file name → digest.

    `came_in` is the config.json of the model that the weights come from: its model type and its keys that do not
    describe the sizes are kept, if it exists. `changes` are additional keys of config.json.
    """
    number = None if end_of_text is None else end_of_text.id
    files: dict[str, dict[str, Any]] = {
        CONFIG_FILE: huggingface_config(geometry, number, _content(came_in)) | dict(changes or {}),
        GENERATION_FILE: {"bos_token_id": number, "eos_token_id": number},
    }
    return _write_absent(folder, files) | write_tokenizer_configuration(folder, geometry, end_of_text)


def write_tokenizer_configuration(
    folder: Path, geometry: Geometry, end_of_text: EndOfText | None
) -> dict[str, FileDigest]:
    """Write tokenizer_config.json, unless `folder` has it or no token ends a text; returns file name → digest."""
    if end_of_text is None:
        return {}
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is
        "bos_token": end_of_text.token,
        "eos_token": end_of_text.token,
        "model_max_length": geometry.context,
        "clean_up_tokenization_spaces": False,
    }
    return _write_absent(folder, {TOKENIZER_CONFIG_FILE: content})


def _write_absent(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, FileDigest]:
    """Write JSON files that `folder` does not have; returns file name → digest."""
    return {
        name: write_bytes(folder / name, (json.dumps(content, indent=2) + "\n").encode())
        for name, content in files.items()
        if not (folder / name).exists()
    }


def _content(config: Path | None) -> bytes | None:
    """Return the content of a config.json; None if it cannot be read."""
    try:
        return None if config is None else plain_json(config.read_bytes())
    except OSError:
        return None


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
