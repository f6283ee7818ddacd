"""Folders of models of the Llama family in Hugging Face's layout, written without the code under test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Tensors = dict[str, NDArray[np.float32]]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
"""A model whose heads are wider together than the residual stream."""


def tensors_of(config: dict[str, Any], seed: int = 0) -> Tensors:
    """Return random tensors (outputs, inputs) of a model, by name; those of every variant that `config` has."""
    random = np.random.default_rng(seed)
    width, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    biased = bool(config.get("attention_bias"))
    found: Tensors = {}

    def add(name: str, *shape: int) -> None:
        found[name] = random.standard_normal(shape, dtype=np.float32)

    def linear(name: str, outputs: int, inputs: int, *, bias: bool) -> None:
        add(f"{name}.weight", outputs, inputs)
        if bias:
            add(f"{name}.bias", outputs)

    add("model.embed_tokens.weight", config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            linear(f"{at}.self_attn.{name}", outputs, width, bias=biased or config["model_type"] == "qwen2")
        linear(f"{at}.self_attn.o_proj", width, queries, bias=biased)
        if config["model_type"] == "qwen3":
            add(f"{at}.self_attn.q_norm.weight", size)
            add(f"{at}.self_attn.k_norm.weight", size)
        for name, outputs, inputs in (
            ("gate_proj", inner, width),
            ("up_proj", inner, width),
            ("down_proj", width, inner),
        ):
            linear(f"{at}.mlp.{name}", outputs, inputs, bias=bool(config.get("mlp_bias")))
        add(f"{at}.input_layernorm.weight", width)
        add(f"{at}.post_attention_layernorm.weight", width)
    add("model.norm.weight", width)
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", config["vocab_size"], width)
    return found


def write_folder(folder: Path, config: dict[str, Any], tensors: Tensors, shards: int = 1) -> Path:
    """Write config.json and the tensors, in one file or in shards with an index; returns `folder`."""
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    places = {name: names[index % shards] for index, name in enumerate(tensors)}
    for shard in names:
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
