"""Folders of adapters in PEFT's layout, written without the code under test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.stages.checkpoint.llama_folder import CONFIG, Tensors, tensors_of, write_folder

RANK = 3
ALPHA = 4.5
WIDTHS = {"q_proj": (12, 24), "v_proj": (12, 8), "down_proj": (20, 12)}
"""Module of the model in `llama_folder.CONFIG` → inputs and outputs."""
PLACES = {"q_proj": "self_attn.q_proj", "v_proj": "self_attn.v_proj", "down_proj": "mlp.down_proj"}
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
}
"""The smallest configuration that PEFT opens, but for the base model."""


def matrix(layer: int, module: str, side: str) -> str:
    """Return the name of a matrix of an adapter; `side` is A or B."""
    return f"base_model.model.model.layers.{layer}.{PLACES[module]}.lora_{side}.weight"


def adapter_tensors(seed: int = 5) -> Tensors:
    """Return random adapters of both layers, by name."""
    random, found = np.random.default_rng(seed), Tensors()
    for layer in range(CONFIG["num_hidden_layers"]):
        for module, (inputs, outputs) in WIDTHS.items():
            found[matrix(layer, module, "A")] = random.standard_normal((RANK, inputs), np.float32)
            found[matrix(layer, module, "B")] = random.standard_normal((outputs, RANK), np.float32)
    return found


def write_adapter_folder(folder: Path, base: Path, tensors: Tensors | None = None, **changes: Any) -> Path:
    """Write adapters of the model in `base`, with changed keys of their configuration; returns `folder`."""
    folder.mkdir(exist_ok=True)
    content = {**ADAPTER, "base_model_name_or_path": str(base), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file(adapter_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def write_base(folder: Path, **changes: Any) -> Path:
    """Write the model that the adapters belong to; returns `folder`."""
    folder.mkdir(exist_ok=True)
    config = CONFIG | changes
    return write_folder(folder, config, tensors_of(config))
