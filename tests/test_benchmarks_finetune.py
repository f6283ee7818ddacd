"""The benchmark of fine-tuning: its table, the folders that both sides open, comparisons with transformers and PEFT."""

import importlib.util
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import agreement, finetune, throughput
from benchmarks.finetune import Method, compare, peer_precisions, tuned_config
from benchmarks.finetune_model import fine_tuning, model_folder
from benchmarks.finetune_results import finetune_markdown, finetune_rows
from benchmarks.protocol import BF16_MODEL, BF16_WEIGHTS, Side
from benchmarks.results import SideResult, ThroughputComparison
from benchmarks.throughput import sizes_of
from tests.test_benchmarks import TINY, TINY_LLAMA, TINY_MODELS, quiet
from threadloom.stages.checkpoint import load_model
from threadloom.stages.config import Config
from threadloom.stages.models import initialise, parameter_shapes
from threadloom.stages.resolve import load_config, to_json

AUTOCAST = SideResult("PyTorch eager bf16", False, [100.0, 90.0, 110.0], 10_000_000_000, 0)
SMALL = SideResult("PyTorch eager bf16 weights", False, [80.0, 70.0, 90.0], 8_000_000_000, 0)
OURS = SideResult("threadloom bf16 τ=0", True, [300.0, 180.0, 330.0], 1_000_000_000, 0)


def written(config: Config, folder: Path) -> str:
    """Return a configuration as a file."""
    file = folder / f"{config.name}.json"
    file.write_text(to_json(config))
    return str(file)


def tuned(config: Config, folder: Path, method: Method, *overrides: str) -> Config:
    """Return a fine-tuning of a model with random weights."""
    model = model_folder(written(config, folder), 6, folder)
    return tuned_config(model, method, "4x5", 3, overrides)


def test_speed_is_compared_with_the_fastest_peer_and_memory_with_the_smallest() -> None:
    comparison = ThroughputComparison("tiny, LoRA r=3, bf16", 1e9, "equal", [AUTOCAST, SMALL, OURS])
    rows = finetune_rows([comparison])
    assert [row[1] for row in rows] == [AUTOCAST.name, SMALL.name, OURS.name]
    assert rows[2][2:] == ["300 (180 to 330)", "3.00 (2.00 to 3.00)", "300", "1.00 GB", "0.12"]
    assert rows[0][3:] == ["1", "100", "10.00 GB", "1.25"]
    page = finetune_markdown([comparison], "a machine")
    assert "| tiny, LoRA r=3, bf16 | threadloom bf16 τ=0 | 300 (180 to 330) |" in page
    assert "- tiny, LoRA r=3, bf16: equal" in page


def test_threadloom_in_16_bits_is_compared_with_every_way_of_pytorch() -> None:
    assert peer_precisions("float32", Method.LORA) == ["float32"]
    assert peer_precisions("bf16", Method.FULL) == ["bf16", BF16_WEIGHTS]
    assert peer_precisions("fp16", Method.LORA) == ["bf16", BF16_WEIGHTS, BF16_MODEL]


@TINY_MODELS
def test_the_model_has_the_random_weights_in_bfloat16(tmp_path: Path, config: Config) -> None:
    folder = model_folder(written(config, tmp_path), 9, tmp_path)
    geometry, weights = load_model(folder)
    assert geometry.context == 9
    expected = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(geometry).items()}
    initialise(expected, geometry, config.seed, residual_scaling=config.model.residual_scaling)
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=2.0**-8, err_msg=name)
    assert model_folder(str(folder), 9, tmp_path) == folder, "a folder is used as it is"


def test_parameters_and_operations_are_those_of_the_adapters(tmp_path: Path) -> None:
    shape = load_config("smollm2-135m")
    shape = msgspec.structs.replace(shape, model=msgspec.structs.replace(shape.model, layers=1, vocab_size=7))
    model = model_folder(written(shape, tmp_path), 8, tmp_path)
    config = tuned_config(model, Method.LORA, "2x8", 16, [])
    found = fine_tuning(config, tmp_path / "adapter")
    assert 30 * found.adapter_parameters == 4_884_480, "as PEFT counts them"
    sizes = sizes_of(config, 2)
    matrices = sizes.model.multiplied
    attention = 6 * 8 * 576
    assert sizes.flops_per_token == 6 * matrices + attention
    frozen = msgspec.structs.replace(sizes, fine_tuning=found)
    assert frozen.flops_per_token == 4 * matrices + 6 * found.adapter_parameters + attention
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (16, 16)


@pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache
def test_threadloom_can_be_measured_without_peers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = CliRunner().invoke(
        finetune.main,
        ["--no-peers", "--config", written(TINY_LLAMA, tmp_path), "--batch", "4x5", "--rank", "3", "--seconds", "0.05",
         "--precision", "float32", "--json", "--out", str(out)],
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    comparisons = json.loads(answer.stdout)["comparisons"]
    assert [found["config"] for found in comparisons] == [
        "tiny 4x5, all weights, float32", "tiny 4x5, LoRA r=3, float32",
    ]  # fmt: skip
    assert all(len(found["sides"][0]["tokens_per_s"]) == throughput.ROUNDS for found in comparisons)
    assert (out / "finetune.png").stat().st_size > 1000
    assert "threadloom τ=0" in (out / "finetune.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch", "8"], "--batch 8"),
        (["--config", "nowhere"], "nowhere"),
        (["--precision", "float8"], "float8"),
        (["--set", "lora.rnk=3"], "lora.rnk"),
    ],
)
def test_a_wrong_argument_is_refused(tmp_path: Path, arguments: list[str], named: str) -> None:
    common = ["--no-peers", "--batch", "4x5", "--config", written(TINY, tmp_path)]
    answer = CliRunner().invoke(finetune.main, [*common, *arguments])
    assert answer.exit_code == 1, answer.output
    assert named in answer.output


def test_a_missing_peer_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else name)
    answer = CliRunner().invoke(finetune.main, [])
    assert answer.exit_code == 1
    assert "make bench" in answer.output


@pytest.mark.torch
@pytest.mark.timeout(600)  # compiling the kernels takes a minute, starting transformers ten seconds a process
@TINY_MODELS
@pytest.mark.parametrize("method", list(Method))
def test_both_sides_compute_the_same_and_are_measured(tmp_path: Path, config: Config, method: Method) -> None:
    found = compare(tuned(config, tmp_path, method), "float32", [Side.EAGER], 0.2, quiet)
    assert [side.name for side in found.sides] == ["PyTorch eager", "threadloom τ=0"]
    assert found.checked.startswith("2 updates")
    assert all(side.median > 0 and side.peak_bytes > side.library_bytes > 0 for side in found.sides)


@pytest.mark.torch
@pytest.mark.timeout(600)
def test_another_scale_of_the_adapters_is_noticed(tmp_path: Path) -> None:
    config = tuned(TINY_LLAMA, tmp_path, Method.LORA)
    theirs = fine_tuning(config, tmp_path / "adapter")
    sizes = msgspec.structs.replace(sizes_of(config, 2), fine_tuning=theirs)
    other = msgspec.structs.replace(config, lora=msgspec.structs.replace(config.lora, alpha=3.1))
    with pytest.raises(agreement.CheckFailed, match="disagree"):
        finetune.check_equal(to_json(other), sizes, "float32")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("precision", "model", "adapters"),
    [("float32", "float32", "float32"), (BF16_MODEL, "bfloat16", "float32"), (BF16_WEIGHTS, "bfloat16", "bfloat16")],
)
@pytest.mark.filterwarnings("default")
def test_the_peer_trains_the_adapters_alone(tmp_path: Path, precision: str, model: str, adapters: str) -> None:
    pytest.importorskip("peft")
    from benchmarks.finetune_peer import build

    theirs = fine_tuning(tuned(TINY_LLAMA, tmp_path, Method.LORA), tmp_path / "adapter")
    built = build(theirs, precision, checkpointed=True)
    trained = {name: tensor for name, tensor in built.named_parameters() if tensor.requires_grad}
    assert {str(tensor.dtype) for tensor in trained.values()} == {f"torch.{adapters}"}
    assert {str(tensor.dtype) for name, tensor in built.named_parameters() if name not in trained} == {f"torch.{model}"}
    assert sum(tensor.numel() for tensor in trained.values()) == theirs.adapter_parameters
    assert all("lora_" in name for name in trained)
