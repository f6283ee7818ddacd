"""Adapters that PEFT made are merged here as PEFT merges them; those written here are opened by PEFT."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.stages.checkpoint.test_exporting_transformers import saved
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import ExportedModel, export_model, load_merged, load_model, merge_adapters
from threadloom.stages.checkpoint.adapter_writer import write_adapter
from threadloom.stages.models import (
    Geometry,
    Lora,
    huggingface_views,
    linear_modules,
    lora_shapes,
    parameter_shapes,
)
from threadloom.stages.storage import ADAPTER_CONFIG_FILE, CheckpointError, StoredFormat

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

Floats = NDArray[np.float32]
RANK = 3
EPS = float(np.finfo(np.float32).eps)
IDS = np.random.default_rng(1).integers(0, 37, (2, 40))
TIED = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "q and v": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "all-linear": ("llama", {"target_modules": "all-linear", "lora_alpha": 5}),
    "rslora": ("qwen3", {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 16}),
    "expression": ("qwen2", {"target_modules": r".*\.mlp\.(gate|down)_proj"}),
    "excluded": ("llama-tied", {"target_modules": "all-linear", "exclude_modules": ["k_proj", "mlp.up_proj"]}),
    "default of gpt2": ("gpt2", {}),
    "c_proj of gpt2": ("gpt2", {"target_modules": ["c_proj", "c_fc"], "modules_to_save": ["ln_f"]}),
    "saved": ("llama", {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    "saved tied": ("llama-tied", {"target_modules": ["o_proj"], **TIED}),
    "saved tied head": ("llama-tied", {"target_modules": ["o_proj"], **TIED, "modules_to_save": ["lm_head"]}),
    "saved tied gpt2": ("gpt2", {"modules_to_save": ["lm_head", "wpe"], "ensure_weight_tying": True}),
}
"""Name → model and settings of PEFT."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the models that are adapted."""
    pytest.importorskip("peft")
    path = tmp_path_factory.mktemp("models")
    for name in sorted({model for model, _ in THEIRS.values()}):
        saved(name, path / name)
    return path


def opened(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> NDArray[np.float64]:
    import torch

    with torch.no_grad():
        found: NDArray[np.float64] = model.double()(torch.from_numpy(IDS)).logits.numpy()
    return found


def made_by_peft(model: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Save adapters of random weights with PEFT, and the tensors that are trained as a whole changed as well."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(opened(model), LoraConfig(r=RANK, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for tensor in adapted.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    adapted.save_pretrained(str(folder))


def merged_by_peft(model: Path, adapter: Path) -> tuple[dict[str, Floats], NDArray[np.float64]]:
    """Return the tensors of the merged model, and the logits of the model with its adapters apart."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(opened(model), adapter)
    tensors = {name: t.numpy() for name, t in adapted.merge_and_unload().state_dict().items()}
    return tensors, logits(PeftModel.from_pretrained(opened(model), adapter))


def require_merged(found: dict[str, Floats], expected: dict[str, Floats]) -> None:
    """Compare two merges in float32.

    A sum of RANK products, its multiplication and the addition are RANK + 2 roundings, in either order of the sum: of
    values within 8, which these weights and products are.
    """
    for name, tensor in found.items():
        assert np.abs(tensor).max() < 8
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=2 * (RANK + 2) * EPS * 8, err_msg=name)


@pytest.mark.parametrize("name", THEIRS)
def test_adapters_of_peft_are_merged_as_by_peft(name: str, models: Path, tmp_path: Path) -> None:
    model, settings = models / THEIRS[name][0], THEIRS[name][1]
    made_by_peft(model, tmp_path / "adapter", settings)
    expected, expected_logits = merged_by_peft(model, tmp_path / "adapter")
    geometry, weights = load_merged(tmp_path / "adapter", model)
    assert geometry == load_model(model)[0]
    require_merged(huggingface_views(weights, geometry), expected)
    export_model(ExportedModel(model, weights, geometry, None), tmp_path / "out", StoredFormat.FLOAT32)
    found = logits(opened(tmp_path / "out"))
    assert np.abs(found - expected_logits).max() <= 1e-5 * np.abs(expected_logits).max()


OURS: dict[str, tuple[str, set[str], set[str]]] = {
    "q and v": ("llama", {"self_attn.q_proj", "self_attn.v_proj"}, set()),
    "all": ("qwen3", set(), {"normf_weight", "norm1_weight", "q_norm_weight"}),
    "up alone": ("qwen2", {"mlp.up_proj", "self_attn.k_proj"}, {"wte", "head"}),
    "tied": ("llama-tied", {"mlp.down_proj"}, {"wte"}),
    "gpt2": ("gpt2", {"attn.c_attn", "mlp.c_proj"}, {"lnf_weight", "lnf_bias"}),
    "all of gpt2": ("gpt2", set(), {"wte", "wpe", "ln2_weight", "ln2_bias"}),
}
"""Name → model, modules with an adapter (none: all), tensors that are trained as a whole."""


def adapted(model: Path, modules: set[str], *, rank_stabilised: bool = False) -> tuple[Geometry, dict[str, Floats]]:
    """Return the geometry and the weights of a model with random adapters, in the blocks that they have."""
    plain, weights = load_model(model)
    names = frozenset(modules or {module.name for module in linear_modules(plain)})
    geometry = replace(plain, lora=Lora(RANK, 4.5, names, rank_stabilised))
    random, adapters = np.random.default_rng(3), Arena(lora_shapes(geometry))
    tensors: dict[str, Floats] = {**weights, **adapters}
    from threadloom.stages.checkpoint.adapter_tensors import adapter_views

    for view in adapter_views(tensors, geometry, set()).values():
        view[...] = 0.3 * random.standard_normal(view.shape, np.float32)
    return geometry, tensors


@pytest.mark.parametrize("rank_stabilised", [False, True], ids=["plain", "rank stabilised"])
@pytest.mark.parametrize("name", OURS)
def test_peft_opens_adapters_written_here(name: str, rank_stabilised: bool, models: Path, tmp_path: Path) -> None:
    model, modules, whole = models / OURS[name][0], *OURS[name][1:]
    geometry, tensors = adapted(model, modules, rank_stabilised=rank_stabilised)
    for tensor in sorted(whole):
        tensors[tensor] += np.float32(0.25)
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", tensors, geometry, whole, str(model))
    expected, expected_logits = merged_by_peft(model, tmp_path / "adapter")
    plain, read_back = load_merged(tmp_path / "adapter", model)
    merge_adapters(geometry, tensors)
    for key in parameter_shapes(plain):
        np.testing.assert_array_equal(read_back[key], tensors[key])
    require_merged(huggingface_views(read_back, plain), expected)
    export_model(ExportedModel(model, read_back, plain, None), tmp_path / "out", StoredFormat.FLOAT32)
    found = logits(opened(tmp_path / "out"))
    assert np.abs(found - expected_logits).max() <= 1e-5 * np.abs(expected_logits).max()


def test_two_trained_copies_of_a_tied_embedding_are_refused(models: Path, tmp_path: Path) -> None:
    model = models / "llama-tied"
    for name, modules in (("one", ["embed_tokens"]), ("two", ["embed_tokens", "lm_head"])):
        made_by_peft(model, tmp_path / name, {"target_modules": ["o_proj"], "modules_to_save": modules})
        with pytest.raises(CheckpointError, match="ensure_weight_tying=True"):
            load_merged(tmp_path / name, model)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 5}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 5}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_to_transform": 0}, "layers_to_transform"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": r".*\.0\..*q_proj"}, "self_attn.q_proj in one of the layers 0 and 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_methods_of_peft_are_refused_by_name(
    settings: dict[str, Any], key: str, models: Path, tmp_path: Path
) -> None:
    made_by_peft(models / "llama", tmp_path / "adapter", {"target_modules": ["q_proj"], **settings})
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        load_merged(tmp_path / "adapter", models / "llama")


def test_no_key_that_peft_writes_is_unknown(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_by_peft(models / "llama", tmp_path / "adapter", {"target_modules": ["q_proj"]})
    content = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG_FILE).read_text())
    from threadloom.stages.storage import adapter_config

    fields = adapter_config.AdapterConfig.__struct_fields__
    known = {*fields, *adapter_config._REFUSED, *adapter_config._WITHOUT_EFFECT, "ensure_weight_tying"}
    assert set(content) <= known
