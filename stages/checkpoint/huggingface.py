"""GPT-2 in Hugging Face's layout: a folder with `model.safetensors` and `config.json`, written and read.

The layout names every layer's tensors on their own, where ours stack the layers of one kind; matrices are stored
(inputs, outputs) on both sides, so that every tensor of theirs is a view of one of ours and nothing is transposed. The
output projection is tied to the token embedding and not stored. `transformers.GPT2LMHeadModel.from_pretrained` opens
what is written here as it is.
"""

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline import Arena
from threadloom.stages.models import Geometry, Shape, parameter_shapes
from threadloom.stages.storage import CheckpointError, FileDigest, TensorFile, open_tensors, write_bytes, write_tensors

Floats = NDArray[np.float32]

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
PREFIX = "transformer."
TIED = "lm_head.weight"

NAMES = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "qkv_weight": "h.{layer}.attn.c_attn.weight",
    "attn_proj_weight": "h.{layer}.attn.c_proj.weight",
    "fc_weight": "h.{layer}.mlp.c_fc.weight",
    "mlp_proj_weight": "h.{layer}.mlp.c_proj.weight",
    "ln1_weight": "h.{layer}.ln_1.weight",
    "ln1_bias": "h.{layer}.ln_1.bias",
    "qkv_bias": "h.{layer}.attn.c_attn.bias",
    "attn_proj_bias": "h.{layer}.attn.c_proj.bias",
    "ln2_weight": "h.{layer}.ln_2.weight",
    "ln2_bias": "h.{layer}.ln_2.bias",
    "fc_bias": "h.{layer}.mlp.c_fc.bias",
    "mlp_proj_bias": "h.{layer}.mlp.c_proj.bias",
    "lnf_weight": "ln_f.weight",
    "lnf_bias": "ln_f.bias",
}
"""Our names and theirs, without their prefix; `{layer}` stands where our first axis counts the layers."""

_CAUSAL_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants that older versions saved with the weights


class _Config(msgspec.Struct):
    """The fields of a GPT2Config that decide what the model computes; those without a default must be there."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    model_type: str = "gpt2"
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


def model_views(weights: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return every tensor under Hugging Face's name, as a view: read it to save the model, write it to load one."""
    views: dict[str, Floats] = {}
    for name, theirs in NAMES.items():
        if "{layer}" not in theirs:
            views[PREFIX + theirs] = weights[name]
            continue
        for layer, view in enumerate(weights[name]):
            views[PREFIX + theirs.format(layer=layer)] = view
    return views


def model_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return the shape of every tensor under Hugging Face's name, in the order of `model_views`."""
    shapes: dict[str, Shape] = {}
    for name, shape in parameter_shapes(geometry).items():
        theirs = NAMES[name]
        if "{layer}" in theirs:
            shapes |= {PREFIX + theirs.format(layer=layer): shape[1:] for layer in range(geometry.layers)}
        else:
            shapes[PREFIX + theirs] = shape
    return shapes


def model_config(geometry: Geometry, end_of_text: int | None = None) -> dict[str, Any]:
    """Return the content of `config.json`; `end_of_text` is the id of a token that begins and ends texts, if any."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": geometry.vocabulary,
        "n_positions": geometry.context,
        "n_embd": geometry.channels,
        "n_layer": geometry.layers,
        "n_head": geometry.heads,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }


def write_model(
    folder: Path, weights: Mapping[str, Floats], geometry: Geometry, end_of_text: int | None = None
) -> dict[str, FileDigest]:
    """Write the two files of a model to `folder`, an existing directory without them; returns file name → digest."""
    config = json.dumps(model_config(geometry, end_of_text), indent=2) + "\n"
    return {
        MODEL_FILE: write_tensors(folder / MODEL_FILE, model_views(weights), {"format": "pt"}),
        CONFIG_FILE: write_bytes(folder / CONFIG_FILE, config.encode()),
    }


def read_geometry(path: Path) -> Geometry:
    """Read a `config.json`; raises `CheckpointError` if it is not that of a supported GPT-2 model."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            path,
            expected="the configuration of a GPT-2 model as JSON",
            got=f"{type(error).__name__}: {error}",
            cause="the directory holds another kind of model, or is incomplete",
            hint="use a directory written by `GPT2LMHeadModel.save_pretrained`",
        ) from error
    _check_config(path, config)
    return Geometry(config.vocab_size, config.n_positions, config.n_layer, config.n_head, config.n_embd)


def _check_config(path: Path, config: _Config) -> None:
    """Raise `CheckpointError` for a variant that the kernels do not compute."""
    accepted: dict[str, tuple[Any, ...]] = {
        "model_type": ("gpt2",),
        "n_inner": (None, 4 * config.n_embd),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    for name, values in accepted.items():
        if getattr(config, name) not in values:
            wanted = " or ".join(json.dumps(value) for value in values)
            _refuse(path, f"{name} = {wanted}", json.dumps(getattr(config, name)), "an unsupported variant of GPT-2")
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        if getattr(config, name) < 1:
            _refuse(path, f"{name} of at least 1", str(getattr(config, name)), "the file was edited")
    if config.n_embd % config.n_head:
        found = f"n_embd = {config.n_embd}, n_head = {config.n_head}"
        _refuse(path, "n_embd that n_head divides", found, "the file was edited")


def _refuse(path: Path, expected: str, got: str, cause: str) -> None:
    hint = "use a GPT-2 model of the published architecture"
    raise CheckpointError(path, expected=expected, got=got, cause=cause, hint=hint)


def load_model(folder: Path) -> tuple[Geometry, Arena]:
    """Read a GPT-2 model in Hugging Face's layout into a new arena.

    The names may lack the prefix `transformer.`, causal masks in older files are ignored, and `lm_head.weight` may be
    present if it equals the token embedding. Names and shapes are checked before memory is allocated. Raises
    `CheckpointError`.
    """
    geometry = read_geometry(folder / CONFIG_FILE)
    with _open_model(folder) as file:
        names = _check_model(file, geometry)
        weights = Arena(parameter_shapes(geometry))
        _read_tensors(file, names, weights)
    return geometry, weights


def read_model(path: Path, geometry: Geometry, weights: Mapping[str, Floats]) -> None:
    """Read a `model.safetensors` into weights of a known geometry; raises `CheckpointError` if it does not fit."""
    with open_tensors(path) as file:
        _read_tensors(file, _check_model(file, geometry), weights)


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
    """Return name in `model_shapes` → name in the file; raises `CheckpointError` if the file does not fit."""
    prefixed = any(name.startswith(PREFIX) for name in file.shapes)
    names = {name: name if prefixed else name.removeprefix(PREFIX) for name in model_shapes(geometry)}
    masks = {name for name in file.shapes if _CAUSAL_MASK.fullmatch(name.removeprefix(PREFIX))}
    file.require(
        {names[name]: shape for name, shape in model_shapes(geometry).items()},
        ignored=frozenset(masks | {TIED}),
        cause=f"the model does not have the sizes {geometry}",
    )
    return names


def _read_tensors(file: TensorFile, names: Mapping[str, str], weights: Mapping[str, Floats]) -> None:
    for name, view in model_views(weights).items():
        file.read(names[name], view)
    if TIED in file.shapes:
        _check_tied(file, weights["wte"])


def _check_tied(file: TensorFile, wte: Floats) -> None:
    """Raise `CheckpointError` unless the output projection equals the token embedding."""
    got = "different values"
    if file.shapes[TIED] == wte.shape:
        projection = np.empty_like(wte)
        file.read(TIED, projection)
        if np.array_equal(projection, wte):
            return
    else:
        got = f"shape {file.shapes[TIED]} instead of {wte.shape}"
    raise CheckpointError(
        file.path,
        expected=f"{TIED} equal to {PREFIX}wte.weight",
        got=got,
        cause="the output projection is not tied to the token embedding",
        hint="use a model with tied embeddings",
    )
