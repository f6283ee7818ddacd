"""GGUF files, read back with the reader of the package gguf."""

import builtins
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from tests.stages.checkpoint.test_huggingface import random_weights
from tests.stages.data.made_tokenizers import MADE
from tests.stages.support import command
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import ExportedModel
from threadloom.stages.checkpoint.huggingface import write_model
from threadloom.stages.data import load_tokenizer
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.models import (
    Geometry,
    Llama3Scaling,
    LlamaGeometry,
    Rotary,
    UnsupportedModelError,
    parameter_shapes,
)
from threadloom.stages.tools.export.gguf_file import write_gguf
from threadloom.stages.tools.export.gguf_models import GgufLlama
from threadloom.stages.tools.export.gguf_vocabulary import read_vocabulary

gguf = pytest.importorskip("gguf")

GEOMETRY = Geometry(vocabulary=430, context=11, layers=2, heads=4, channels=32)
"""With rows for a tokenizer of 424 tokens and 6 more; rows of 32 elements, which Q8_0 can divide."""
LLAMA = LlamaGeometry(37, 16, 5, 4, 24, kv_heads=2, head_size=6, mlp_width=20)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logger.remove()


def folder_with(path: Path, tokenizer: str, geometry: Geometry = GEOMETRY) -> Path:
    path.mkdir()
    write_model(path, random_weights(geometry), geometry)
    (path / "tokenizer.json").write_text(tokenizer)
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


def exported(folder: Path, out: Path, dtype: str) -> Any:
    assert command("export", folder, out, "--dtype", dtype).status == 0
    return gguf.GGUFReader(out)


def value(reader: Any, key: str) -> Any:
    return reader.get_field(key).contents()


def expected_tensors() -> dict[str, np.ndarray]:
    """Return the tensors of GPT-2 under llama.cpp's names, matrices as (outputs, inputs)."""
    w = random_weights(GEOMETRY)
    tensors = {"token_embd.weight": w["wte"], "position_embd.weight": w["wpe"]}
    tensors |= {"output_norm.weight": w["lnf_weight"], "output_norm.bias": w["lnf_bias"]}
    names = {"ln1": "attn_norm", "qkv": "attn_qkv", "attn_proj": "attn_output", "ln2": "ffn_norm", "fc": "ffn_up"}
    for layer in range(GEOMETRY.layers):
        for ours, theirs in (names | {"mlp_proj": "ffn_down"}).items():
            tensors[f"blk.{layer}.{theirs}.weight"] = w[f"{ours}_weight"][layer].T
            tensors[f"blk.{layer}.{theirs}.bias"] = w[f"{ours}_bias"][layer]
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "fp16", "bf16", "q8_0"])
def test_tensors_are_read_back(tmp_path: Path, dtype: str) -> None:
    reader = exported(folder_with(tmp_path / "in", MADE["qwen"]()), tmp_path / "m.gguf", dtype)
    expected = expected_tensors()
    assert {tensor.name for tensor in reader.tensors} == expected.keys()
    for tensor in reader.tensors:
        exact = expected[tensor.name]
        assert tensor.shape.tolist() == list(exact.shape[::-1])
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(exact.shape)
        if exact.ndim == 1 or tensor.name == "position_embd.weight" or dtype == "float32":
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
            np.testing.assert_array_equal(found, exact)
        elif dtype == "q8_0":  # half a step, and the rounding of the step to float16 times the largest number of steps
            blocks = exact.reshape(-1, 32)
            step = np.abs(blocks).max(axis=1, keepdims=True) / 127.0
            assert (np.abs(found.reshape(-1, 32) - blocks) <= step * (0.5 + 127.0 * 2.0**-11) * (1 + 1e-5)).all()
        else:
            np.testing.assert_allclose(found, exact, rtol=2.0**-11 if dtype == "fp16" else 2.0**-8, atol=2.0**-25)
    types = {"float32": "ALL_F32", "fp16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    assert value(reader, "general.file_type") == gguf.LlamaFileType[types[dtype]]


def test_sizes_and_vocabulary_are_read_back(tmp_path: Path) -> None:
    content = json.loads(MADE["qwen"]())
    reader = exported(folder_with(tmp_path / "in", MADE["qwen"]()), tmp_path / "m.gguf", "fp16")
    sizes = {"context_length": 11, "embedding_length": 32, "block_count": 2, "feed_forward_length": 128}
    sizes |= {"attention.head_count": 4}
    assert value(reader, "general.architecture") == "gpt2"
    assert {key: value(reader, f"gpt2.{key}") for key in sizes} == sizes
    assert value(reader, "gpt2.attention.layer_norm_epsilon") == np.float32(1e-5)
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    for token, number in content["model"]["vocab"].items():
        assert tokens[number] == token
    added = {token["content"]: token for token in content["added_tokens"]}
    kinds = gguf.TokenType
    assert types[added["<|im_end|>"]["id"]] == kinds.CONTROL
    assert types[added["<think>"]["id"]] == kinds.USER_DEFINED
    assert types[40] == kinds.NORMAL
    assert types[-1] == kinds.UNUSED
    assert value(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in content["model"]["merges"]]
    assert value(reader, "tokenizer.ggml.pre") == "qwen2"
    assert value(reader, "tokenizer.ggml.eos_token_id") == added["<|im_end|>"]["id"]
    assert value(reader, "tokenizer.ggml.add_bos_token") is False
    assert value(reader, "tokenizer.chat_template") == "{{ messages }}"


def test_a_tokenizer_without_merges_gets_one_that_merges_nothing(tmp_path: Path) -> None:
    """The package omits an empty list, and llama.cpp refuses a file without merges."""
    content = json.loads(MADE["qwen"]())
    known = set("".join(token for token in content["model"]["vocab"] if len(token) == 1))
    content["model"]["merges"] = []
    reader = exported(folder_with(tmp_path / "in", json.dumps(content)), tmp_path / "m.gguf", "fp16")
    (merge,) = value(reader, "tokenizer.ggml.merges")
    assert not known & set(merge.split(" "))


@pytest.mark.parametrize(("name", "expected"), [("smollm", "smollm"), ("neox", "gpt-2"), ("phrases", "default")])
def test_the_separation_of_words_is_named(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "tokenizer.json").write_text(MADE[name]())
    assert read_vocabulary(tmp_path, load_tokenizer(tmp_path), 420).pre_tokenizer == expected


def test_a_vocabulary_of_sentencepiece_has_scores(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(MADE["llama2"]())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    found = read_vocabulary(tmp_path, load_tokenizer(tmp_path), 420)
    assert (found.model, found.begin, found.end, found.space_prefix) == ("llama", 1, 2, True)
    merges = json.loads(MADE["llama2"]())["model"]["merges"]
    first, last = ("".join(merges[at]) for at in (0, -1))
    score = dict(zip(found.tokens, found.scores, strict=True))
    assert score[first] == 0 > score[last]
    assert found.types[found.tokens.index("<0x41>")] == gguf.TokenType.BYTE
    assert found.types[0] == gguf.TokenType.UNKNOWN


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "in", MADE["unigram"]())
    command("export", folder, tmp_path / "m.gguf").refuses("tokenizer.json", "a tokenizer of the type Unigram")
    BytesTokenizer().save(folder / "tokenizer.json")
    command("export", folder, tmp_path / "m.gguf").refuses("a tokenizer of the type bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = folder_with(tmp_path / "in", MADE["qwen"]()), builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ImportError("No module named 'gguf'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    command("export", folder, tmp_path / "m.gguf").refuses("the package gguf", "threadloom[gguf]")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "llama"),
        ({"tied": True, "qkv_bias": True}, "qwen2"),
        ({"qk_norm": True}, "qwen3"),
    ],
)
def test_a_model_of_the_llama_family_is_read_back(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    """Each row of a matrix has the number of its output, so that the order of the rows shows."""
    geometry = replace(LLAMA, vocabulary=430, **changes)
    weights = Arena(parameter_shapes(geometry))
    for tensor in weights.values():
        tensor[...] = np.arange(tensor.shape[-1])
    (tmp_path / "tokenizer.json").write_text(MADE["qwen"]())
    model = ExportedModel(tmp_path, weights, geometry, None)
    write_gguf(model, load_tokenizer(tmp_path), tmp_path / "m.gguf", "float32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    per_layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    per_layer += ["attn_q_norm", "attn_k_norm"] if geometry.qk_norm else []
    expected = {f"blk.{layer}.{part}.weight" for layer in range(geometry.layers) for part in per_layer}
    biased = "qkv" if geometry.qkv_bias else ""
    expected |= {f"blk.{layer}.attn_{part}.bias" for layer in range(geometry.layers) for part in biased}
    expected |= {"token_embd.weight", "output_norm.weight", *([] if geometry.tied else ["output.weight"])}
    assert found.keys() == expected
    size = geometry.head_size
    permuted = [0, 3, 1, 4, 2, 5] if name == "llama" else list(range(size))
    for part, heads, first in (("q", 4, 0), ("k", 2, 24), ("v", 2, 36)):
        order = permuted if part != "v" else list(range(size))
        rows = [first + head * size + row for head in range(heads) for row in order]
        assert found[f"blk.1.attn_{part}.weight"][:, 5].tolist() == rows
    assert value(reader, "general.architecture") == name
    sizes = {"attention.head_count_kv": 2, "attention.key_length": 6, "feed_forward_length": 20, "vocab_size": 430}
    assert {key: value(reader, f"{name}.{key}") for key in sizes} == sizes
    assert value(reader, f"{name}.rope.freq_base") == 10_000.0


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "llama"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "attn_proj_bias": True, "mlp_bias": True}, "llama"),
        ({"qk_norm": True}, "qwen3"),
        ({"layers_without_rotary": frozenset({3})}, "smollm3"),
        ({"layers_without_rotary": frozenset({1})}, None),
        ({"rotary": Rotary(dimensions=2)}, None),
        ({"qk_norm": True, "mlp_bias": True}, None),
    ],
)
def test_variants_of_the_llama_family_have_names(changes: dict[str, Any], name: str | None) -> None:
    geometry = replace(LLAMA, **changes)
    if name is None:
        with pytest.raises(UnsupportedModelError, match="GGUF cannot express it"):
            GgufLlama().name(geometry)
    else:
        assert GgufLlama().name(geometry) == name


def rotated(x: np.ndarray, position: int, first: list[int], second: list[int]) -> np.ndarray:
    """Return x (heads, D) with the pairs of dimensions (first[i], second[i]) turned by the angles of a position."""
    angle = position * 10_000.0 ** (-2.0 * np.arange(len(first)) / x.shape[-1])
    y = x.copy()
    y[:, first] = x[:, first] * np.cos(angle) - x[:, second] * np.sin(angle)
    y[:, second] = x[:, second] * np.cos(angle) + x[:, first] * np.sin(angle)
    return y


def test_queries_and_keys_are_permuted_for_pairs_of_neighbours() -> None:
    """The scores of rotation by halves are those of llama.cpp's rotation of neighbours with permuted rows."""
    rng, model, size = np.random.default_rng(0), GgufLlama(), LLAMA.head_size
    weights: dict[str, Any] = {"q": rng.standard_normal((24, 24)), "k": rng.standard_normal((12, 24))}
    x = rng.standard_normal((2, 24))
    scores = []
    for interleaved in (False, True):
        first = list(range(0, size, 2)) if interleaved else list(range(size // 2))
        second = list(range(1, size, 2)) if interleaved else list(range(size // 2, size))
        vectors = {}
        for name, weight in weights.items():
            key = f"model.layers.0.self_attn.{name}_proj.weight"
            rows = model.converted(key, weight, LLAMA) if interleaved else weight
            bias = model.converted(key.replace("weight", "bias"), weight[:, 0], LLAMA) if interleaved else weight[:, 0]
            position = 7 if name == "q" else 3
            vectors[name] = rotated((rows @ x[int(name == "k")] + bias).reshape(-1, size), position, first, second)
        scores.append(vectors["q"].reshape(2, 2, size) @ vectors["k"][:, :, None])  # two query heads share a key head
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-12)
    other: Any = rng.standard_normal((12, 24))
    assert model.converted("model.layers.0.self_attn.v_proj.weight", other, LLAMA) is other
    qwen = replace(LLAMA, qk_norm=True)
    assert model.converted("model.layers.0.self_attn.q_proj.weight", weights["q"], qwen) is weights["q"]


def test_llama3_scaling_is_a_tensor_of_divisors() -> None:
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)
    geometry = replace(LLAMA, head_size=16, rotary=Rotary(500.0, llama3=scaling))
    found = GgufLlama().further_tensors(geometry)["rope_freqs.weight"]
    wavelengths = 2.0 * np.pi * 500.0 ** (np.arange(0, 16, 2) / 16)
    assert len({*found[wavelengths < 64 / 4].tolist()} | {1.0}) == 1  # short wavelengths stay
    assert (found[wavelengths > 64] == 8.0).all()
    between = (wavelengths > 64 / 4) & (wavelengths < 64)
    t = (64 / wavelengths - 1.0) / 3.0
    np.testing.assert_allclose(found[between], (1.0 / ((1.0 - t) / 8.0 + t))[between], rtol=1e-6)
    assert between.any() and (wavelengths > 64).any()
