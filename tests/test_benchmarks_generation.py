"""The benchmark of generation: its sides agree with the reference, a side that does not is refused, and its table."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import generation, generation_sides
from benchmarks.generation_sides import Ours, Rates, greedy_rates
from tests import reference
from threadloom.kernels import Floats
from threadloom.stages.checkpoint import load_model
from threadloom.stages.inference import DecodePrecision
from threadloom.stages.layouts import as_weights
from threadloom.stages.models import Geometry

pytestmark = pytest.mark.timeout(300)  # includes compiling with an empty cache

TINY = Geometry(vocabulary=41, context=13, layers=2, heads=3, channels=36)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return generation.random_model(tmp_path / "model", TINY)


def test_the_logits_of_our_sides_are_those_of_the_reference(folder: Path) -> None:
    _, arena = load_model(folder)
    tensors = {name: tensor.astype(np.float64) for name, tensor in arena.items()}
    prompt = [3, 1, 4, 1, 5]
    expected = [reference.next_token_logits(tensors, np.array(ids), TINY.heads) for ids in (prompt, [*prompt, 7])]
    sides = dict(generation.our_sides(folder, 2))
    assert list(sides) == ["threadloom float32", "threadloom bf16", "threadloom int8"]
    for name, side in sides.items():
        found = [side.prefill(prompt).copy(), side.append(7).copy()]
        distance = np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected)
        assert distance <= generation.TOLERANCES[name.split()[-1]]


def test_a_side_with_other_weights_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    geometry, arena = load_model(folder)
    sides = {"threadloom float32": Ours(as_weights(geometry, arena), geometry, DecodePrecision.FLOAT32, 1)}
    generation.check(sides, [1, 2, 3])
    _, other = load_model(folder)
    other["wte"][...] *= 1.001
    sides["other float32"] = Ours(as_weights(geometry, other), geometry, DecodePrecision.FLOAT32, 1)
    with pytest.raises(SystemExit, match="the logits of other float32 differ"):
        generation.check(sides, [1, 2, 3])
    assert "threadloom float32       logits 0.0e+00" in capsys.readouterr().out


def test_greedy_rates_continue_with_the_most_likely_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0, 16.0])
    monkeypatch.setattr(generation_sides, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    taken = list[int]()

    def logits_of(token: int) -> Floats:
        logits = np.zeros(9, np.float32)
        logits[token] = 1.0
        return logits

    class Counter:
        def prefill(self, prompt: Sequence[int]) -> Floats:
            return logits_of(len(prompt))

        def append(self, token: int) -> Floats:
            taken.append(token)
            return logits_of(token + 1)

        def rates(self, prompt: Sequence[int], tokens: int) -> Rates:
            return greedy_rates(self, prompt, tokens)

    assert Counter().rates([0, 0], 3) == Rates(prefill=2 / 4.0, decode=3 / 2.0)
    assert taken == [2, 3, 4]


def test_the_table_has_medians_and_ranges() -> None:
    lines = list(generation.table({"a side": [Rates(1.0, 30.0), Rates(5.0, 10.0), Rates(2.0, 20.0)]}))
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        "prefill       2.0 (1.0 to 5.0)",
        "decode       20.0 (10.0 to 30.0)",
    ]


def test_llama_cpp_is_optional(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(SystemExit, match="needs the package llama-cpp-python"):
        list(generation.llama_cpp_sides(folder, tmp_path / "gguf", 1))
    assert (tmp_path / "gguf" / "float32.gguf").stat().st_size > 4 * 41 * 36


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers renames arguments from version to version
def test_the_command_compares_with_transformers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setitem(generation.SHAPES, "gpt2", TINY)
    monkeypatch.setattr(sys, "argv", ["generation", "--prompt=5", "--tokens=3", "--rounds=2"])
    generation.main()
    out = capsys.readouterr().out
    for side in ("threadloom float32", "threadloom bf16", "threadloom int8", "transformers float32"):
        assert out.count(side) >= 3
    assert "prompt of 5, then 3 tokens, medians of 2 rounds" in out
