"""Models of the Llama family made by transformers on the spot: the same names, logits and greedy texts.

Every switch of config.json is on in one of the models and off in another.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threadloom.stages.checkpoint import load_model
from threadloom.stages.inference.decoder import Decoder
from threadloom.stages.inference.generation import generate
from threadloom.stages.inference.sampling import SamplingSettings
from threadloom.stages.layouts import as_weights
from threadloom.stages.models import huggingface_shapes
from threadloom.stages.storage import read_geometry

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

SIZES = {
    "vocab_size": 67,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 24}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama, wide heads": ("llama", {"head_dim": 10, "num_key_value_heads": 6, "rms_norm_eps": 1e-3}),
    "llama, one key head": ("llama", {"num_key_value_heads": 1, "rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}}),
    "mistral": ("mistral", {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "mistral, long window": ("mistral", {"sliding_window": 64}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows off": ("qwen2", {"sliding_window": 8, "use_sliding_window": False}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3, biases": ("qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}),
    "smollm3, every second": ("smollm3", {"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True,
                                          "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}),
}  # fmt: skip


def saved(folder: Path, name: str, **options: Any) -> Any:
    """Create a random model in transformers, save it, and return it."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    transformers.utils.logging.disable_progress_bar()
    model_type, keys = MODELS[name]
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **SIZES | keys))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or key.endswith("bias"):  # ones and zeros otherwise
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.eval().save_pretrained(folder, **options)
    return model


def logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Return the logits (T, V) after each token: the first half processed at once, the others one by one."""
    geometry, weights = load_model(folder)
    decoder, half = Decoder(as_weights(geometry, weights), geometry), len(ids) // 2
    found = [decoder.prefill(ids[: half + 1]).copy()]
    found += [decoder.append(int(token)).copy() for token in ids[half + 1 :]]
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
def test_names_shapes_logits_and_greedy_texts_are_equal(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    model = saved(tmp_path, name, max_shard_size="20KB" if len(name) % 2 else "5GB")
    geometry = read_geometry(tmp_path / "config.json")
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del theirs["lm_head.weight"]
    assert huggingface_shapes(geometry) == theirs
    ids = np.random.default_rng(len(name)).integers(0, 67, 50)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
        greedy = model.generate(
            torch.from_numpy(ids[:9])[None], max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    np.testing.assert_allclose(logits(tmp_path, ids), expected[25:], rtol=0, atol=1e-4)
    assert abs(expected).max() > 1, "the logits differ enough for the comparison to say something"
    _, weights = load_model(tmp_path)
    text = generate(as_weights(geometry, weights), geometry, ids[:9], 30, SamplingSettings(temperature=0.0), seed=0)
    assert list(text) == greedy[0, 9:].tolist()


@pytest.mark.parametrize("name", ["llama, one key head", "llama, linear", "mistral", "smollm3"])
def test_the_older_spelling_describes_the_same_model(tmp_path: Path, name: str) -> None:
    """The spelling of transformers 4: `rope_theta` and `rope_scaling` in place of `rope_parameters`."""
    saved(tmp_path, name)
    path = tmp_path / "config.json"
    geometry, config = read_geometry(path), json.loads(path.read_text())
    rotary = config.pop("rope_parameters")
    config["rope_theta"] = rotary.pop("rope_theta")
    config["rope_scaling"] = rotary if rotary["rope_type"] != "default" else None
    path.write_text(json.dumps(config))
    assert read_geometry(path) == geometry


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_number_format_is_read_as_transformers_reads_it(tmp_path: Path, dtype: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    saved(tmp_path, "qwen3").to(getattr(torch, dtype)).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = np.arange(12)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(logits(tmp_path, ids), expected[6:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_absent_keys_mean_what_they_mean_in_transformers(tmp_path: Path, model_type: str) -> None:
    """A file with the sizes alone, which leave the heads of keys and values and the head size to the defaults."""
    transformers = pytest.importorskip("transformers")
    required = {name: SIZES[name] for name in ("vocab_size", "intermediate_size", "num_hidden_layers")}
    content = {"model_type": model_type, "num_attention_heads": 32, "hidden_size": 64, "pad_token_id": 0, **required}
    (tmp_path / "config.json").write_text(json.dumps(content | {"max_position_embeddings": 64}))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    ours = read_geometry(tmp_path / "config.json")
    with pytest.importorskip("torch").device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if theirs.tie_word_embeddings:
        del shapes["lm_head.weight"]
    assert huggingface_shapes(ours) == shapes
    assert ours.rotary.theta == theirs.rope_parameters["rope_theta"]  # type: ignore[attr-defined]
    assert ours.epsilon == theirs.rms_norm_eps  # type: ignore[attr-defined]
    (tmp_path / "config.json").write_text(json.dumps(content))
    if model_type != "mistral":  # its default window is shorter than its default context
        context = transformers.AutoConfig.from_pretrained(tmp_path).max_position_embeddings
        assert read_geometry(tmp_path / "config.json").context == context
