"""Models in Hugging Face's layout: files of this package read by transformers, and the reverse."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import reference
from tests.error_bounds import FLOAT32, FLOAT64, mean_loss, with_bounds
from tests.kernels.comparison import assert_close
from tests.stages.models.test_huggingface import GEOMETRY, LAYOUT
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint.huggingface import (
    GENERATION_FILE,
    TOKENIZER_CONFIG_FILE,
    read_end_ids,
    write_model,
)
from threadloom.stages.checkpoint.model_reader import load_model, read_model
from threadloom.stages.models import EndOfText, Geometry, huggingface_views, parameter_shapes
from threadloom.stages.storage import CONFIG_FILE, MODEL_FILE, CheckpointError, read_geometry

TIED = LAYOUT.output_projection


def random_weights(geometry: Geometry = GEOMETRY, seed: int = 0) -> Arena:
    """Return weights without tensors of zeros or ones."""
    g = geometry
    tensors = reference.random_tensors(np.random.default_rng(seed), g.vocabulary, g.context, g.layers, g.channels)
    weights = Arena(parameter_shapes(geometry))
    for name, tensor in tensors.items():
        weights[name][...] = tensor
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with a model."""
    write_model(tmp_path, random_weights(), GEOMETRY)
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    """Apply `change` to the tensors in the file of a model."""
    tensors = load_file(folder / MODEL_FILE)
    save_file(change(tensors) or tensors, folder / MODEL_FILE)


def test_written_model_reads_back_bit_for_bit(folder: Path) -> None:
    geometry, weights = load_model(folder)
    assert geometry == GEOMETRY
    np.testing.assert_array_equal(weights.flat.view(np.int32), random_weights().flat.view(np.int32))


def test_written_files_have_the_usual_permissions(folder: Path) -> None:
    plain = folder / "plain"
    plain.touch()
    assert (folder / MODEL_FILE).stat().st_mode == (folder / CONFIG_FILE).stat().st_mode == plain.stat().st_mode


def test_every_bit_pattern_survives(tmp_path: Path) -> None:
    weights = random_weights()
    patterns = np.random.default_rng(1).integers(0, 2**32, weights.flat.size, np.uint32)
    for name, view in weights.items():  # NaNs with payloads, infinities and denormals among them
        view[...] = patterns[: view.size].view(np.float32).reshape(view.shape)
        view.reshape(-1)[:4] = np.array([0x7F800001, 0xFF800000, 0x00000001, 0x80000000], np.uint32).view(np.float32)
        assert name in weights
    write_model(tmp_path, weights, GEOMETRY)
    _, back = load_model(tmp_path)
    np.testing.assert_array_equal(back.flat.view(np.int32), weights.flat.view(np.int32))


def test_transformers_opens_it_without_warnings_and_computes_the_same_loss(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.enable_propagation()
    with caplog.at_level("WARNING"):
        model, report = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    printed = capfd.readouterr()
    assert (caplog.text, printed.out, printed.err) == ("", "", "")
    assert not any(report.values()), report
    ids = np.random.default_rng(2).integers(0, GEOMETRY.vocabulary, (2, GEOMETRY.context))
    with torch.no_grad():
        found = model.double()(torch.tensor(ids), labels=torch.tensor(ids))  # the labels are shifted by the model
    tensors = {name: view.astype(np.float64) for name, view in random_weights().items()}
    expected, bounds = with_bounds(lambda: {"logits": reference.forward(tensors, ids, GEOMETRY.heads).logits})
    assert_close(found.logits.numpy(), expected["logits"], 2.0 * FLOAT64 / FLOAT32 * bounds["logits"])  # two in float64
    loss, bound = mean_loss(tensors, ids[:, :-1], ids[:, 1:], GEOMETRY.heads)
    assert abs(float(found.loss) - loss) <= bound  # the loss is computed in float32


def test_a_model_saved_by_transformers_opens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    config = transformers.GPT2Config(vocab_size=23, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    geometry, weights = load_model(tmp_path)
    assert geometry == Geometry(vocabulary=23, context=8, layers=2, heads=2, channels=8)
    state = model.state_dict()
    for name, view in huggingface_views(weights, geometry).items():
        np.testing.assert_array_equal(view, state[name].numpy())


def test_older_layouts_open(folder: Path) -> None:
    def older(tensors: dict[str, Any]) -> dict[str, Any]:
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        mask = np.tril(np.ones((1, 1, 11, 11), np.float32))
        return bare | {"h.0.attn.bias": mask, "h.1.attn.masked_bias": np.float32(-1e4) * np.ones(1, np.float32)}

    rewrite(folder, older)
    _, weights = load_model(folder)
    np.testing.assert_array_equal(weights.flat, random_weights().flat)


def test_float16_is_upcast(folder: Path) -> None:
    rewrite(folder, lambda tensors: {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    _, weights = load_model(folder)
    np.testing.assert_array_equal(weights["wte"], random_weights()["wte"].astype(np.float16).astype(np.float32))


def test_a_stored_output_projection_must_equal_the_embedding(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {TIED: tensors["transformer.wte.weight"].copy()})
    load_model(folder)
    rewrite(folder, lambda tensors: tensors | {TIED: tensors["transformer.wte.weight"] + np.float32(1)})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight equal to .* got different values"):
        load_model(folder)
    rewrite(folder, lambda tensors: tensors | {TIED: np.zeros((3, 12), np.float32)})
    with pytest.raises(CheckpointError, match=r"got shape \(3, 12\) instead of \(37, 12\)"):
        load_model(folder)


def test_missing_unknown_and_misshapen_tensors_are_named(folder: Path) -> None:
    whole = load_file(folder / MODEL_FILE)
    name = "transformer.h.1.mlp.c_fc.weight"
    save_file({key: tensor for key, tensor in whole.items() if key != name}, folder / MODEL_FILE)
    with pytest.raises(CheckpointError, match=re.escape(f"{name} missing")):
        load_model(folder)
    save_file(whole | {"transformer.h.3.ln_1.bias": np.zeros(12, np.float32)}, folder / MODEL_FILE)
    with pytest.raises(CheckpointError, match=r"got transformer\.h\.3\.ln_1\.bias in addition to them"):
        load_model(folder)
    save_file(whole | {name: np.ascontiguousarray(whole[name].T)}, folder / MODEL_FILE)
    with pytest.raises(CheckpointError, match=re.escape(f"expected {name} of shape (12, 48), got shape (48, 12)")):
        load_model(folder)


@pytest.mark.parametrize(
    ("prefix", "tied_prefix"),
    [("_orig_mod.transformer.", "_orig_mod."), ("module.", "module."), ("model.", ""), ("", "model."),
     ("module._orig_mod.model.transformer.", "module._orig_mod.model.")],
)  # fmt: skip
def test_prefixes_of_wrappers_are_taken_off(folder: Path, prefix: str, tied_prefix: str) -> None:
    def wrapped(tensors: dict[str, Any]) -> dict[str, Any]:
        renamed = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        mask = np.tril(np.ones((1, 1, 11, 11), np.float32))
        return renamed | {prefix + "h.0.attn.bias": mask, tied_prefix + TIED: tensors["transformer.wte.weight"].copy()}

    rewrite(folder, wrapped)
    _, weights = load_model(folder)
    np.testing.assert_array_equal(weights.flat, random_weights().flat)
    rewrite(folder, lambda tensors: tensors | {tied_prefix + TIED: np.zeros((37, 12), np.float32)})
    with pytest.raises(CheckpointError, match=re.escape(f"expected {tied_prefix}{TIED} equal to")):
        load_model(folder)


def test_foreign_names_are_shown_next_to_ours(folder: Path) -> None:
    rewrite(folder, lambda tensors: {f"gpt_neox.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert re.search(r"gpt_neox\.transformer\.\S+.* instead of transformer\.wte\.weight, ", message)
    assert "37 tokens, context 11, 3 layers, 3 heads, 12 channels" in message
    assert "Geometry(" not in message
    assert "['" not in message


def test_a_tensor_that_is_there_twice_is_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {"model.wte.weight": np.zeros((37, 12), np.float32)})
    with pytest.raises(CheckpointError, match=r"wte\.weight in addition to them"):
        load_model(folder)


def test_transposed_matrices_are_recognised(folder: Path) -> None:
    def linear(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: np.ascontiguousarray(tensor.T) if ".attn.c_" in name or ".mlp.c_" in name else tensor
            for name, tensor in tensors.items()
        }

    rewrite(folder, linear)
    with pytest.raises(CheckpointError, match="its matrices are transposed, as those of nanoGPT"):
        load_model(folder)


def test_another_geometry_is_refused(folder: Path) -> None:
    other = Geometry(vocabulary=37, context=11, layers=3, heads=3, channels=24)
    with pytest.raises(CheckpointError, match=r"wte\.weight of shape \(37, 24\), got shape \(37, 12\)"):
        read_model(folder / MODEL_FILE, other, Arena(parameter_shapes(other)))


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("model_type", "bert", 'expected model_type = "gpt2" or "llama"'),
        ("activation_function", "gelu", 'activation_function = "gelu_new"'),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon = 1e-05, got 1e-06"),
        ("tie_word_embeddings", False, "tie_word_embeddings = true"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx = false"),
        ("n_inner", 40, "n_inner = null or 48, got 40"),
        ("n_head", 5, "n_embd = 12, n_head = 5"),
        ("n_layer", 0, "n_layer of at least 1"),
        ("n_layer", "three", "Expected `int`"),
        ("vocab_size", -1, "vocab_size of at least 1"),
    ],
)
def test_a_configuration_of_another_model_is_refused(folder: Path, field: str, value: object, text: str) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=re.escape(text)) as caught:
        read_geometry(path)
    assert caught.value.path == path


def test_a_damaged_or_missing_file_is_reported(folder: Path) -> None:
    model = folder / MODEL_FILE
    model.write_bytes(model.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=re.escape(str(model))):
        load_model(folder)
    model.unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(model))):
        load_model(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"got pytorch_model\.bin \(a pickle"):
        load_model(folder)
    (folder / CONFIG_FILE).write_bytes(b"\xff\x00")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(folder)


def test_the_token_that_ends_a_text_is_in_the_files_that_transformers_reads(tmp_path: Path) -> None:
    write_model(tmp_path, random_weights(), GEOMETRY, EndOfText(7, "<|endoftext|>"))
    for name in (CONFIG_FILE, GENERATION_FILE):
        content = json.loads((tmp_path / name).read_text())
        assert (content["bos_token_id"], content["eos_token_id"]) == (7, 7)
    tokens = json.loads((tmp_path / TOKENIZER_CONFIG_FILE).read_text())
    assert (tokens["bos_token"], tokens["eos_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert tokens["model_max_length"] == GEOMETRY.context
    assert read_end_ids(tmp_path) == {7}


def test_a_tokenizer_of_another_format_has_no_configuration_for_transformers(folder: Path) -> None:
    assert not (folder / TOKENIZER_CONFIG_FILE).exists()
    assert read_end_ids(folder) == frozenset()


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [3, 5]}, {"eos_token_id": 4}, {3, 5}),
        ({"eos_token_id": 3}, {}, {3}),
        ({"temperature": 0.7}, {"eos_token_id": 4}, {4}),
        ({"eos_token_id": None}, {"eos_token_id": 0}, {0}),
        (None, {"eos_token_id": 4}, {4}),
        (None, {}, set()),
    ],
)
def test_the_generation_configuration_precedes_that_of_the_model(
    tmp_path: Path, generation: dict[str, object] | None, config: dict[str, object], ends: set[int]
) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / GENERATION_FILE).write_text(json.dumps(generation))
    assert read_end_ids(tmp_path) == ends


def test_a_damaged_generation_configuration_is_named(folder: Path) -> None:
    for content in (b"{", b'{"eos_token_id": "x"}', b"\xff"):
        (folder / GENERATION_FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(str(folder / GENERATION_FILE))):
            read_end_ids(folder)
