"""Writing adapters in PEFT's layout: `adapter_model.safetensors` and `adapter_config.json`."""

import json
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint.adapter_tensors import adapter_views
from threadloom.stages.checkpoint.shards import METADATA
from threadloom.stages.models import (
    Geometry,
    adapted_modules,
    huggingface_parts,
    huggingface_tied,
    linear_modules,
)
from threadloom.stages.storage import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ADAPTER_PREFIX,
    FileDigest,
    write_bytes,
    write_tensors,
)


def write_adapter(
    folder: Path,
    weights: Mapping[str, NDArray[np.float32]],
    geometry: Geometry,
    saved: Set[str],
    base: str,
    stored_rows: Mapping[str, NDArray[np.int32]] | None = None,
) -> dict[str, FileDigest]:
    """Write the adapters of a model to `folder`, an existing directory without any; returns file name → digest.

    `saved` are the tensors of the model that are trained as a whole, `base` is the folder of the model. `stored_rows`
    are the rows of some of those tensors in the order in which they are written.
    """
    views, stored_rows = adapter_views(weights, geometry, saved), stored_rows or {}
    parts = huggingface_parts(geometry) | huggingface_tied(geometry)
    rows = {f"{ADAPTER_PREFIX}{name}": stored_rows[ours] for name, ours in parts.items() if ours in stored_rows}
    text = json.dumps(adapter_config(geometry, saved, base), indent=2) + "\n"
    return {
        ADAPTER_FILE: write_tensors(folder / ADAPTER_FILE, views, METADATA, rows=rows),
        ADAPTER_CONFIG_FILE: write_bytes(folder / ADAPTER_CONFIG_FILE, text.encode()),
    }


def adapter_config(geometry: Geometry, saved: Set[str], base: str) -> dict[str, Any]:
    """Return the content of adapter_config.json, with the keys that all versions of PEFT since 0.9 read."""
    lora = geometry.lora
    assert lora is not None
    content: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": not all(module.transposed for module in adapted_modules(geometry)),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": _modules_to_save(geometry, saved) or None,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": _target_modules(geometry),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": lora.rank_stabilised,
    }
    if saved & set(huggingface_tied(geometry).values()):
        content["ensure_weight_tying"] = True  # otherwise PEFT trains two copies of the token embedding
    return content


def _target_modules(geometry: Geometry) -> list[str]:
    """Return the shortest names that stand for the modules with an adapter and for no other linear layer.

    PEFT compares a name with the end of the name of a module, from a dot on.
    """
    adapted = {f".{module.path}" for layer in range(geometry.layers) for module in adapted_modules(geometry, layer)}
    linear = {f".{module.path}" for layer in range(geometry.layers) for module in linear_modules(geometry, layer)}
    return _shortest(adapted, linear, lambda ending: f".{ending}")


def _modules_to_save(geometry: Geometry, saved: Set[str]) -> list[str]:
    """Return the shortest names that stand for the modules of the saved tensors and for no other module.

    PEFT compares a name with the end of the name of a module, so `norm` is `input_layernorm` as well.
    """
    tensors = huggingface_parts(geometry) | huggingface_tied(geometry)
    modules = {name: name.rpartition(".")[0] for name in tensors}
    wanted = {module for name, module in modules.items() if tensors[name] in saved}
    return _shortest(wanted, set(modules.values()), lambda ending: ending)


def _shortest(wanted: Set[str], known: Iterable[str], compared: Callable[[str], str]) -> list[str]:
    """Return endings of the `wanted` paths, cut at dots, each the shortest that no other of the `known` paths has."""
    others, found = set(known) - wanted, set[str]()
    for path in wanted:
        names = path.strip(".").split(".")
        endings = (".".join(names[-count:]) for count in range(1, len(names) + 1))
        found.add(next(end for end in endings if not any(other.endswith(compared(end)) for other in others)))
    return sorted(found)
