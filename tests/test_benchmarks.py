"""The benchmarks: tables and plots of made-up results, worker processes of threadloom, and comparisons with PyTorch."""

import importlib.util
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from benchmarks import agreement, convergence, processors, summary, throughput
from benchmarks.protocol import Side, SideWorker, UpdateFigures
from benchmarks.results import (
    SideResult,
    ThroughputComparison,
    comparison_figure,
    comparison_markdown,
    comparison_rows,
    format_spread,
)
from benchmarks.throughput import compare_sides, sizes_of, with_batch
from tests.error_bounds import mean_loss
from threadloom.stages.config import Config, Gpt2Config, LlamaConfig
from threadloom.stages.console.json_worker import WorkerError
from threadloom.stages.models import multiplied_parameters, parameter_count
from threadloom.stages.resolve import load_config, resolve, to_json

TINY = Config(name="tiny", model=Gpt2Config(vocab_size=17, context=6, layers=2, heads=2, channels=8), batch_size=4,
              steps=12)  # fmt: skip

EAGER = SideResult("PyTorch eager", False, [100.0, 90.0, 110.0], 2_000_000_000, 300_000_000)
COMPILED = SideResult("PyTorch compile", False, [120.0, 130.0, 125.0], 2_200_000_000, 300_000_000)
OURS = SideResult("threadloom τ=0", True, [240.0, 130.0, 250.0], 900_000_000, 200_000_000)


TINY_LLAMA = msgspec.structs.replace(
    TINY,
    model=LlamaConfig(
        vocab_size=17, context=6, layers=2, heads=4, kv_heads=2, channels=8, head_size=6, mlp_width=10, tied=True,
        qk_norm=True,
    ),
)  # fmt: skip
TINY_MODELS = pytest.mark.parametrize("config", [TINY, TINY_LLAMA], ids=["gpt2", "llama"])


def quiet(_: str) -> None:
    pass


def test_ratios_are_per_round_and_relative_to_the_best_peer() -> None:
    comparison = ThroughputComparison("small", 1e9, "equal", [EAGER, COMPILED, OURS])
    assert comparison.best_peer is COMPILED
    assert comparison.ratios(OURS, COMPILED) == [2.0, 1.0, 2.0]
    table = comparison_rows([comparison])
    assert [row[1] for row in table] == ["PyTorch eager", "PyTorch compile", "threadloom τ=0"]
    assert table[2][2:] == ["240 (130 to 250)", "2.00 (1.00 to 2.00)", "240", "0.90 GB", "0.41"]
    assert table[1][3] == "1"
    assert format_spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    page = comparison_markdown([comparison], "a machine")
    assert "| small | threadloom τ=0 | 240 (130 to 250) |" in page
    assert "- small: equal" in page


@pytest.mark.parametrize("sides", [[EAGER, OURS], [EAGER, COMPILED, OURS], [OURS]])
def test_the_plot_can_be_drawn(sides: list[SideResult]) -> None:
    comparisons = [ThroughputComparison(name, 1e9, "equal", sides) for name in ("small", "large")]
    drawn = comparison_figure(comparisons, "a machine")
    drawn.canvas.draw()
    speed, memory = drawn.axes
    assert len(speed.patches) == len(memory.patches) == 2 * len(sides)
    assert speed.patches[0].get_height() == pytest.approx(1.0)  # type: ignore[attr-defined]


def test_several_comparisons_on_one_page(tmp_path: Path) -> None:
    autocast = SideResult("PyTorch eager bf16", False, [150.0, 160.0, 170.0], 1_000_000_000, 0)
    low = SideResult("threadloom bf16 τ=0", True, [450.0, 320.0, 340.0], 450_000_000, 0)
    for name, sides in (("small", [EAGER, COMPILED, autocast, OURS, low]), ("gpt2", [EAGER, COMPILED, OURS])):
        throughput.write_results(tmp_path / name, [ThroughputComparison(name, 1e9, "equal", sides)])
    files = [str(tmp_path / name / "throughput.json") for name in ("small", "gpt2")]
    done = CliRunner().invoke(summary.main, [*files, "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    text = (tmp_path / "summary.md").read_text("utf-8")
    assert "| `small` | 100 | 125 | 240 | 2.00 (1.00 to 2.00) | 0.90 of 2.00 GB (0.45) |" in text
    assert "| `gpt2` | 100 | 125 | 240 | 2.00 (1.00 to 2.00) | 0.90 of 2.00 GB (0.45) |" in text
    assert "| `small` | 160 | 340 | 2.00 (2.00 to 3.00) | 1.88 | 0.45 of 0.90 GB (0.50) |" in text
    assert text.count("`gpt2`") == 1, "it was not measured in bfloat16"
    assert (tmp_path / "summary.png").stat().st_size > 10_000


def test_a_processor_is_added_and_drawn_beside_the_others(tmp_path: Path) -> None:
    autocast = SideResult("PyTorch eager bf16", False, [150.0, 160.0, 170.0], 1_000_000_000, 0)
    jax = SideResult("JAX", False, [1000.0, 1000.0, 1000.0], 1_000_000_000, 0)
    low = SideResult("threadloom bf16 τ=0", True, [450.0, 320.0, 340.0], 450_000_000, 0)
    throughput.write_results(
        tmp_path, [ThroughputComparison("small", 1e9, "equal", [EAGER, COMPILED, jax, autocast, OURS, low])]
    )
    folder, picture, results = tmp_path / "kinds", tmp_path / "kinds.png", str(tmp_path / "throughput.json")
    for name in ("AMD EPYC, Zen 4", "Intel (AMX)"):
        named = ["--add", name, "--date", "2026-11-28", "--command", "python -m benchmarks.throughput"]
        arguments = [results, *named, "--folder", str(folder), "--out", str(picture)]
        done = CliRunner().invoke(processors.main, arguments, catch_exceptions=False)
        assert done.exit_code == 0
    assert [path.name for path in sorted(folder.iterdir())] == ["amd-epyc-zen-4.json", "intel-amx.json"]
    kinds = processors.read_processors(folder)
    full, half = kinds[0].ratios
    assert (full.median, full.lowest, full.highest) == (2.0, 1.0, 2.0), "of PyTorch's fastest mode, without JAX"
    assert (half.median, half.lowest, half.highest) == (2.0, 2.0, 3.0)
    drawn = processors.processors_figure(kinds)
    assert [patch.get_height() for patch in drawn.axes[1].patches] == [2.0, 2.0]  # type: ignore[attr-defined]
    assert picture.stat().st_size > 10_000


def test_a_processor_needs_its_name_date_and_command(tmp_path: Path) -> None:
    done = CliRunner().invoke(processors.main, ["--add", "AMD", "--folder", str(tmp_path)])
    assert done.exit_code == 2
    assert "--date" in done.output
    empty = CliRunner().invoke(processors.main, ["--folder", str(tmp_path)])
    assert empty.exit_code == 1
    assert "no measurements in" in empty.output


def test_the_kept_measurements_are_those_of_the_pages() -> None:
    kinds = processors.read_processors(processors.FOLDER)
    assert len(kinds) >= 2
    book = (processors.FOLDER.parent / "performance.md").read_text("utf-8")
    for kind in kinds:
        for ratio in kind.ratios:
            row = f"{ratio.median:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"
            assert row in book, f"{kind.name}, {ratio.config}: {row}"


def test_a_table_has_only_sides_of_its_precision() -> None:
    names = ("PyTorch eager", "PyTorch eager bf16", "threadloom τ=0", "threadloom bf16 τ=0", "threadloom bf16x3 τ=0",
             "threadloom fp16 τ=0")  # fmt: skip
    sides = [SideResult(name, name.startswith("threadloom"), [100.0 * n], 1, 0) for n, name in enumerate(names, 1)]
    comparison = ThroughputComparison("small", 1e9, "equal", sides)
    for low, expected in ((False, [names[0], names[2]]), (True, [names[1], names[3]])):
        found = summary.of_precision(comparison, low)
        assert found is not None
        assert [side.name for side in (*found[0], found[1])] == expected


@pytest.mark.parametrize("name", ["nanogpt-cpu", "small", "gpt2", "llama-small", "smollm2-135m", "qwen3-0.6b"])
def test_sizes_agree_with_the_model(name: str) -> None:
    config = resolve(load_config(name), 2, 65 if name == "nanogpt-cpu" else None)
    sizes, geometry = sizes_of(load_config(name), 2), config.model.geometry()
    assert sizes.model.comparable
    assert sizes.model.parameters == parameter_count(geometry)
    assert sizes.model.multiplied == multiplied_parameters(geometry)
    assert sizes.tokens == config.sequences * config.model.context
    attention = 6 * geometry.layers * geometry.context * geometry.attn_width
    assert sizes.flops_per_token == 6 * sizes.model.multiplied + attention


@pytest.mark.parametrize(("batch", "tokens"), [("4x16", 64), ("3x5", 15)])
def test_a_batch_replaces_sequences_and_context(batch: str, tokens: int) -> None:
    config = with_batch(msgspec.structs.replace(TINY, gradient_accumulation_steps=2), batch)
    assert config.name == f"tiny {batch}"
    assert sizes_of(config, 2).tokens == tokens


@pytest.mark.parametrize("batch", ["8", "8x", "ax5", "8x5x2", "0x5"])
def test_a_wrong_batch_is_refused(batch: str) -> None:
    answer = CliRunner().invoke(throughput.main, ["--no-peers", "--batch", batch])
    assert answer.exit_code == 1
    assert f"--batch {batch}" in answer.output


def test_a_model_that_the_peer_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    model = LlamaConfig(vocab_size=17, context=6, layers=2, heads=2, channels=8, mlp_bias=True)
    file = tmp_path / "biased.json"
    file.write_text(to_json(Config(name="biased", model=model, batch_size=4, steps=12)))
    answer = CliRunner().invoke(throughput.main, ["--config", str(file)])
    assert answer.exit_code == 1
    assert "no biases" in answer.output
    assert "biased" in answer.output


def test_threadloom_in_its_process(tmp_path: Path) -> None:
    with SideWorker(Side.OURS, to_json(TINY), sizes_of(TINY, 2), delay=1, folder=tmp_path) as worker:
        assert worker.name == "threadloom τ=1"
        first = worker.run(3)
        more = worker.run(2)
        memory = worker.memory()
    assert len(first.losses) == len(first.grad_norms) == 3
    assert len(more.losses) == 2
    assert first.seconds > 0
    assert memory["peak"] >= memory["libraries"] > 10 << 20
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(tmp_path / "weights.safetensors").items()}
    with np.load(tmp_path / "tokens.npz") as tokens:
        loss, bound = mean_loss(weights, tokens["ids"][0], tokens["targets"][0], TINY.model.heads)
        assert abs(first.losses[0] - loss) <= bound
        assert tokens["ids"].shape == tokens["targets"].shape == (3, 4, 6)
        np.testing.assert_array_equal(tokens["ids"][:, :, 1:], tokens["targets"][:, :, :-1])


def test_the_weights_and_tokens_that_are_left_to_compare_are_kept(tmp_path: Path) -> None:
    with SideWorker(Side.OURS, to_json(TINY), sizes_of(TINY, 2), folder=tmp_path) as worker:
        worker.run(0)  # waits for the start
        for left in (3, 2, 1):
            weights = {name: w.astype(np.float64) for name, w in load_file(tmp_path / "weights.safetensors").items()}
            with np.load(tmp_path / "tokens.npz") as tokens:
                ids, targets = tokens["ids"], tokens["targets"]
            assert len(ids) == len(targets) == left
            loss, bound = mean_loss(weights, ids[0], targets[0], TINY.model.heads)
            assert abs(worker.run(1).losses[0] - loss) <= bound


def test_a_side_that_fails_is_named() -> None:
    sizes = sizes_of(TINY, 2)
    with SideWorker(Side.OURS, "{}", sizes) as worker, pytest.raises(WorkerError, match=r"threadloom τ=0 exited with"):
        worker.run(1)


def test_threadloom_can_be_measured_without_peers(tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    file.write_text(to_json(TINY))
    out = tmp_path / "out"
    answer = CliRunner().invoke(
        throughput.main,
        ["--no-peers", "--config", str(file), "--seconds", "0.05", "--delays", "0,2", "--json", "--out", str(out)],
    )
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    sides = found["comparisons"][0]["sides"]
    assert [side["name"] for side in sides] == ["threadloom τ=0", "threadloom τ=2"]
    assert all(len(side["tokens_per_s"]) == throughput.ROUNDS for side in sides)
    assert (out / "throughput.png").stat().st_size > 1000
    assert "threadloom τ=2" in (out / "throughput.md").read_text()


def test_a_missing_peer_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = CliRunner().invoke(throughput.main, [])
    assert answer.exit_code == 1
    assert "make bench" in answer.output


@pytest.mark.parametrize(
    ("precision", "loss", "norm", "agree"),
    [
        ("float32", 4.01, 1.0, False),
        ("float32", 4.0, 1.002, False),
        ("bf16", 4.01, 1.01, True),
        ("bf16", 4.02, 1.0, False),
        ("bf16", 4.0, 1.02, False),
        ("fp16", 4.0, 1.002, False),
        ("bf16", math.nan, 1.0, False),
    ],
)
def test_wrong_results_stop_the_comparison(
    precision: str, loss: float, norm: float, agree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Liar:
        def __init__(self, side: Side, *_: object, **__: object) -> None:
            self.figures = (loss, norm) if side is Side.OURS else (4.0, 1.0)

        def __enter__(self) -> "Liar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, updates: int) -> UpdateFigures:
            return UpdateFigures(1.0, [self.figures[0]] * updates, [self.figures[1]] * updates)

    monkeypatch.setattr(agreement, "SideWorker", Liar)
    if agree:
        assert "3 updates" in agreement.check_equal(to_json(TINY), sizes_of(TINY, 2), [0], precision)
        return
    with pytest.raises(agreement.CheckFailed, match=f"in {precision} and PyTorch disagree"):
        agreement.check_equal(to_json(TINY), sizes_of(TINY, 2), [0], precision)


@pytest.mark.torch
@pytest.mark.timeout(300)  # compiling the kernels takes a minute
@TINY_MODELS
def test_both_sides_compute_the_same_and_are_measured(config: Config) -> None:
    found = compare_sides(config, [0, 1], [Side.EAGER], 0.2, quiet)
    assert [side.name for side in found.sides] == ["PyTorch eager", "threadloom τ=0", "threadloom τ=1"]
    assert "τ=0: 3 updates" in found.checked
    assert all(side.median > 0 and side.peak_bytes > side.library_bytes > 0 for side in found.sides)


@pytest.mark.torch
@pytest.mark.timeout(300)  # compiling the kernels of 16 bits takes a minute
@TINY_MODELS
def test_sixteen_bits_are_compared_with_autocast(config: Config) -> None:
    found = compare_sides(config, [0], [Side.EAGER], 0.2, quiet, ["float32", "bf16"])
    assert [side.name for side in found.sides] == [
        "PyTorch eager", "PyTorch eager bf16", "threadloom τ=0", "threadloom bf16 τ=0",
    ]  # fmt: skip
    assert "bf16 τ=0: 3 updates" in found.checked


def test_convergence_plots_all_delays_together(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven " * 60)
    file = tmp_path / "tiny.json"
    file.write_text(to_json(TINY))
    out = tmp_path / "out"
    arguments = ["--config", str(file), "--text", str(text), "--delays", "0,2", "--out", str(out)]
    for _ in range(2):  # the second time replaces the first
        answer = CliRunner().invoke(convergence.main, [*arguments, "--set", "evaluation.interval=5"])
        assert answer.exit_code == 0, answer.output
    assert "final validation loss" in answer.output
    assert "+0.0000" in answer.output
    assert (out / "convergence.png").stat().st_size > 10_000
    assert (out / "delay-2-float32-seed-1337" / "config.json").exists()
    recipes = ["--recipe", "now: delay=0", "--recipe", "late, slow: delay=1 optimizer.lr=1e-4", "--seeds", "1,2"]
    answer = CliRunner().invoke(convergence.main, [*arguments, *recipes])
    assert answer.exit_code == 0, answer.output
    assert "late, slow" in answer.output
    assert "±" in answer.output
    assert json.loads((out / "late--slow-seed-2" / "config.json").read_text())["optimizer"]["lr"] == 1e-4
    answer = CliRunner().invoke(convergence.main, [*arguments, "--recipe", "no settings"])
    assert "expected 'NAME: key=value key=value ...'" in answer.output
