"""The models of the peers, next to the reference: sizes, losses, and curves of losses."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from benchmarks import agreement, curves
from benchmarks.model_sizes import Gpt2Sizes, LlamaSizes, ModelSizes, model_sizes
from benchmarks.protocol import Side
from benchmarks.throughput import sizes_of
from tests import reference
from tests.error_bounds import mean_and_bound
from tests.reference import Ids, Rotary, Tensors, llama
from threadloom.stages.config import Config, Gpt2Config
from threadloom.stages.models import Geometry, LlamaGeometry, Rotary as OurRotary
from threadloom.stages.resolve import to_json

PUBLISHED = {  # counted by transformers
    "SmolLM2-135M": (
        134_515_008,
        LlamaGeometry(49_152, 512, 30, 9, 576, kv_heads=3, head_size=64, mlp_width=1536, tied=True),
    ),
    "TinyLlama-1.1B": (
        1_100_048_384,
        LlamaGeometry(32_000, 512, 22, 32, 2048, kv_heads=4, head_size=64, mlp_width=5632),
    ),
    "Qwen3-0.6B": (
        596_049_920,
        LlamaGeometry(
            151_936, 512, 28, 16, 1024, kv_heads=8, head_size=128, mlp_width=3072, tied=True, qk_norm=True
        ),
    ),
    "GPT-2": (124_439_808, Geometry(50_257, 1024, 12, 12, 768)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_models(name: str) -> None:
    parameters, geometry = PUBLISHED[name]
    sizes = model_sizes(geometry)
    assert sizes.parameters == parameters
    assert sizes.comparable
    looked_up = {
        "SmolLM2-135M": 0, "TinyLlama-1.1B": 32_000 * 2048, "Qwen3-0.6B": 0, "GPT-2": 1024 * 768,
    }  # fmt: skip
    assert sizes.multiplied == parameters - looked_up[name]


def test_variants_that_the_peer_lacks_are_not_comparable() -> None:
    def sizes(**variant: object) -> ModelSizes:
        common: dict[str, object] = {"kv_heads": 1, "head_size": 4, "mlp_width": 6}
        return model_sizes(LlamaGeometry(11, 8, 2, 2, 8, **{**common, **variant}))  # type: ignore[arg-type]

    assert sizes(rotary=OurRotary(theta=7.0)).comparable
    for variant in ({"qkv_bias": True}, {"mlp_bias": True}, {"rotary": OurRotary(linear_factor=2.0)},
                    {"layers_without_rotary": frozenset({1})}):  # fmt: skip
        assert not sizes(**variant).comparable


def peer_loss(sizes: ModelSizes, weights: Tensors, folder: Path) -> tuple[float, Ids, Ids]:
    """Return the peer's mean loss on ids of a fixed seed, and the ids and targets."""
    torch = pytest.importorskip("torch")
    from benchmarks.peer import build_model

    file = folder / "weights.safetensors"
    save_file({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in weights.items()}, file)
    ids, targets = np.random.default_rng(3).integers(0, sizes.vocabulary, (2, 3, sizes.context))
    with torch.no_grad():
        loss = build_model(sizes, file)(torch.tensor(ids), torch.tensor(targets)).item()
    return loss, ids, targets


@pytest.mark.torch
def test_the_gpt2_of_the_peer_has_the_loss_of_the_reference(tmp_path: Path) -> None:
    sizes = Gpt2Sizes(vocabulary=13, context=7, layers=2, heads=3, channels=9)
    weights = reference.random_tensors(np.random.default_rng(1), 13, 7, 2, 9)
    found, ids, targets = peer_loss(sizes, weights, tmp_path)
    expected, bound = mean_and_bound(lambda: reference.losses(weights, ids, targets, 3))
    assert abs(found - expected) <= bound


@pytest.mark.torch
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_llama_of_the_peer_has_the_loss_of_the_reference(tmp_path: Path, tied: bool, qk_norm: bool) -> None:
    pytest.importorskip("transformers")
    sizes = reference.LlamaSizes(
        vocabulary=13, layers=2, channels=8, heads=4, kv_heads=2, head_size=6, mlp_width=7, epsilon=1e-3, tied=tied,
        qk_norm=qk_norm, rotary=Rotary(theta=50.0),
    )  # fmt: skip
    weights = sizes.random_tensors(np.random.default_rng(2))
    theirs = LlamaSizes(
        vocabulary=13, context=7, layers=2, heads=4, channels=8, kv_heads=2, head_size=6, mlp_width=7, epsilon=1e-3,
        theta=50.0, tied=tied, qk_norm=qk_norm, comparable=True,
    )  # fmt: skip
    found, ids, targets = peer_loss(theirs, weights, tmp_path)
    expected, bound = mean_and_bound(lambda: llama.losses(weights, ids, targets, sizes))
    assert abs(found - expected) <= 2.0 * bound  # their rotary angles have some more roundings


def test_the_table_of_curves_has_the_differences_from_pytorch() -> None:
    theirs = curves.LossCurve("PyTorch eager", [3.0, 2.0, 1.0])
    ours = curves.LossCurve("threadloom float32", [3.0, 2.25, 1.0])
    assert ours.farthest(theirs) == 0.25
    table = curves.curves_table([ours, theirs], theirs)
    assert [list(column.cells) for column in table.columns] == [
        ["threadloom float32", "PyTorch eager"], ["2.08333", "2.00000"], ["+0.08333", ""], ["2.5e-01", ""],
    ]  # fmt: skip


@pytest.mark.torch
@pytest.mark.timeout(300)  # compiling the kernels takes a minute
@pytest.mark.parametrize("schedule", [(), ("--schedule", "--set", "schedule.warmup=2")], ids=["constant", "schedule"])
def test_the_curves_of_both_sides_are_compared(schedule: tuple[str, ...], tmp_path: Path) -> None:
    model = Gpt2Config(vocab_size=None, context=6, layers=2, heads=2, channels=8)
    file, text, out = (tmp_path / name for name in ("tiny.json", "text.txt", "out"))
    file.write_text(to_json(Config(name="tiny", model=model, batch_size=4, steps=1)))
    text.write_text("one two three four five six seven " * 60)
    arguments = ["--config", str(file), "--text", str(text), "--updates", "6", "--out", str(out)]
    answer = CliRunner().invoke(curves.main, [*arguments, *schedule], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    found = json.loads((out / "curves.json").read_text())
    assert list(found) == ["threadloom float32", "PyTorch eager"]
    ours, theirs = found.values()
    assert len(ours) == len(theirs) == 6
    assert np.abs(np.subtract(ours, theirs)).max() <= 1e-4


@pytest.mark.torch
def test_the_gpt2_in_jax_has_the_loss_of_the_reference() -> None:
    pytest.importorskip("jax")
    from benchmarks.peer_jax import mean_loss

    weights = reference.random_tensors(np.random.default_rng(1), 13, 7, 2, 9)
    ids, targets = np.random.default_rng(3).integers(0, 13, (2, 3, 7))
    rounded = {name: tensor.astype(np.float32) for name, tensor in weights.items()}
    found = mean_loss(rounded, ids, targets, 3, np.float32)
    expected, bound = mean_and_bound(lambda: reference.losses(weights, ids, targets, 3))
    assert abs(float(found) - expected) <= bound


@pytest.mark.torch
@pytest.mark.timeout(300)  # compiling the kernels takes a minute
def test_jax_and_threadloom_compute_the_same() -> None:
    pytest.importorskip("jax")
    model = Gpt2Config(vocab_size=17, context=6, layers=2, heads=2, channels=8)
    config = Config(name="tiny", model=model, batch_size=4, steps=3)
    assert "3 updates" in agreement.check_equal(to_json(config), sizes_of(config, 2), [0], peer=Side.JAX)
