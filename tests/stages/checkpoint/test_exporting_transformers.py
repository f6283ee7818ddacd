"""Models that transformers made, opened and exported, then opened by transformers 5 and 4: the same tensors and logits.

Version 4 runs in an environment of its own: the variable THREADLOOM_TRANSFORMERS4 is the path of its Python, and
without it that part is left out.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threadloom.stages.checkpoint import ExportedModel, export_model, load_model
from threadloom.stages.storage import StoredFormat

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

PROGRAM = Path(__file__).with_name("transformers_logits.py")
SIZES = {
    "vocab_size": 37, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
THETA = {"rope_type": "default", "rope_theta": 3e5}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 37, "n_positions": 64, "n_embd": 12, "n_layer": 2, "n_head": 3},
    "llama": SIZES | {"head_dim": 6, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    "llama-tied": SIZES | {"head_dim": 4, "tie_word_embeddings": True, "rope_parameters": THETA},
    "mistral": SIZES | {"head_dim": 4, "sliding_window": None, "rope_parameters": THETA, "eos_token_id": 5},
    "qwen2": SIZES
    | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}, "num_attention_heads": 6},
    "qwen3": SIZES | {"head_dim": 8, "rope_parameters": THETA},
    "smollm3": SIZES | {"head_dim": 4, "num_hidden_layers": 5, "rope_parameters": THETA, "pad_token_id": 0},
}


def saved(name: str, folder: Path) -> None:
    """Save a random model of a family, with transformers 5."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("the models are made by transformers 5")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name.partition("-")[0], **FAMILIES[name])
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for tensor in model.parameters():  # norms and biases are constants otherwise
            tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the models as they came in, `NAME-in`, and their exports, `NAME-out`."""
    path = tmp_path_factory.mktemp("models")
    for name in FAMILIES:
        saved(name, path / f"{name}-in")
        geometry, weights = load_model(path / f"{name}-in")
        model = ExportedModel(path / f"{name}-in", weights, geometry, None)
        export_model(model, path / f"{name}-out", StoredFormat.FLOAT32, 3000)
    np.save(path / "ids.npy", np.random.default_rng(1).integers(0, 37, (2, 40)))
    return path


def opened(folder: Path, ids: Path) -> dict[str, np.ndarray]:
    from tests.stages.checkpoint import transformers_logits

    return transformers_logits.opened(folder, np.load(ids))


def require_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Compare tensors exactly, and logits within a part of the largest."""
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if key != "logits":
            np.testing.assert_array_equal(found[key], tensor)
    largest = np.abs(expected["logits"]).max()
    assert np.abs(found["logits"] - expected["logits"]).max() <= tolerance * largest


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_has_the_tensors_and_logits_of_the_model_that_came_in(name: str, folders: Path) -> None:
    expected = opened(folders / f"{name}-in", folders / "ids.npy")
    require_equal(opened(folders / f"{name}-out", folders / "ids.npy"), expected, 0.0)
    came_in, found = (json.loads((folders / f"{name}-{end}" / "config.json").read_text()) for end in ("in", "out"))
    assert found["model_type"] == name.partition("-")[0]
    ours = {"dtype", "transformers_version"}  # those of the file, not of the model
    assert {key: found[key] for key in came_in.keys() - ours} == {key: came_in[key] for key in came_in.keys() - ours}


def test_transformers_4_computes_the_same_logits(folders: Path) -> None:
    python = os.environ.get("THREADLOOM_TRANSFORMERS4")
    if python is None:
        pytest.skip("THREADLOOM_TRANSFORMERS4 is not set")
    exported = [folders / f"{name}-out" for name in FAMILIES]
    done = subprocess.run(
        [python, PROGRAM, folders / "ids.npy", *exported], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, folder in zip(FAMILIES, exported, strict=True):
        with np.load(f"{folder}.npz") as found:
            # Rotary angles are float32 in transformers, and the versions may round them differently.
            require_equal(dict(found), opened(folders / f"{name}-in", folders / "ids.npy"), 1e-5)


def test_bfloat16_is_rounded_as_by_torch(folders: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = folders / "gpt2-in"
    geometry, weights = load_model(folder)
    export_model(ExportedModel(folder, weights, geometry, None), tmp_path / "out", StoredFormat.BF16)
    found, exact = opened(tmp_path / "out", folders / "ids.npy"), opened(folder, folders / "ids.npy")
    for key, tensor in exact.items():
        if key != "logits":
            np.testing.assert_array_equal(found[key], torch.from_numpy(tensor).bfloat16().float().numpy())
