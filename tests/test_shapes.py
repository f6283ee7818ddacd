"""The sweep over shapes: its coverage, its results, and its program with made-up measurements."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import shapes
from benchmarks.protocol import Side
from benchmarks.results import SideResult, ThroughputComparison
from benchmarks.shapes import SHAPES, ShapeResult, TrainingShape, compare_shape, shape_dict, shapes_table, slower
from threadloom.stages.resolve.resolution import resolve


def invented(shape: TrainingShape, ratio: float) -> ShapeResult:
    peer = SideResult("PyTorch eager", False, [100.0] * 3, 10**9, 10**8)
    ours = SideResult("threadloom τ=0", True, [100.0 * ratio] * 3, 10**9, 10**8)
    return ShapeResult(shape, ThroughputComparison(shape.name, 1e9, "equal", [peer, ours]))


def test_a_name_can_be_parsed() -> None:
    for shape in SHAPES:
        assert TrainingShape.parse(shape.name) == shape
    assert TrainingShape.parse("65,32,4,48,1") == TrainingShape(65, 32, 4, 48, 1)
    with pytest.raises((ValueError, TypeError)):
        TrainingShape.parse("65,32")


def test_the_extremes_of_every_dimension_are_covered() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    assert {shape.head_size for shape in SHAPES} == {32, 48, 64, 80}
    for values in (
        {shape.context for shape in SHAPES} >= {32, 1024},
        {shape.vocabulary for shape in SHAPES} >= {65, 50257},
        {shape.batch for shape in SHAPES} >= {1, 64},
    ):
        assert values
    for cores in (1, 2, 16):
        for shape in SHAPES:
            resolve(shape.config(), cores)


def test_slower_and_failed_shapes_are_reported() -> None:
    good, bad = invented(SHAPES[0], 1.5), invented(SHAPES[1], 0.9)
    failed = ShapeResult(SHAPES[2], None, failure="losses differ")
    assert slower([good, bad, failed]) == [bad, failed]
    assert shape_dict(bad)["ratio"] == pytest.approx(0.9)
    drawn = shapes_table([good, bad, failed])
    assert list(drawn.columns[0].cells) == [SHAPES[2].name, SHAPES[1].name, SHAPES[0].name]
    assert list(drawn.columns[5].cells) == ["losses differ", "SLOWER", ""]


@pytest.mark.parametrize(("ratio", "status"), [(1.2, 0), (0.8, 1)])
def test_the_exit_status_is_1_if_a_shape_is_slower(
    ratio: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def compared(shape: TrainingShape, precision: str, peers: Sequence[Side], *_: object) -> ShapeResult:
        asked.append((precision, peers))
        return invented(shape, ratio)

    monkeypatch.setattr(shapes, "compare_shape", compared)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    arguments = ["--shape", "65,32,4,32,1", "--precision", "bf16", "--compile", "--out", str(tmp_path)]
    answer = CliRunner().invoke(shapes.main, arguments)
    assert answer.exit_code == status, answer.output
    assert asked == [("bf16", [Side.EAGER, Side.COMPILED])]
    found = json.loads((tmp_path / "shapes-bf16.json").read_text())
    assert found["results"][0]["name"] == "V65-T32-H4x32-B1"
    assert found["results"][0]["ratio"] == pytest.approx(ratio)


@pytest.mark.torch
def test_a_small_shape_is_checked_and_measured() -> None:
    result = compare_shape(TrainingShape(17, 6, 2, 4, 4), "float32", [Side.EAGER], 0.05, lambda _: None)
    assert result.ratio > 0, result.failure
    assert result.comparison is not None
    assert [side.name for side in result.comparison.sides] == ["PyTorch eager", "threadloom τ=0"]
    assert "τ=0: 3 updates" in result.comparison.checked
