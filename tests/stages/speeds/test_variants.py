"""The measured choice of the variants of Numba's GEMM: the rule, the record, and how a run gets it."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.stages.support import tiny
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.matmul import DEFAULT_VARIANT, VARIANTS, GemmVariant, ProductKind
from threadloom.kernels.matmul.variants import current_variants
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.speeds import variants
from threadloom.stages.speeds.shapes import STANDARD_SHAPES, ProductShapes, product_shapes
from threadloom.stages.speeds.variants import (
    MOST_SETS,
    VariantSpeeds,
    VariantsRecord,
    choose_variants,
    kept_variants,
    measure_variants,
    read_variants,
    variant_speeds_here,
    variants_key,
    variants_path,
)
from threadloom.stages.tools.doctor.view import _variants_table

FOUND = VariantSpeeds({"forward": {"in-place": 100.0, "packed": 120.0}}, {"forward": "packed"})
OTHER = VariantSpeeds({"forward": {"in-place": 100.0, "packed": 90.0}}, {"forward": "in-place"})
SMALL = ProductShapes(20, ((24, 40), (40, 24)), (24, 4100))
needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="variants are compiled code")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADLOOM_CACHE", str(tmp_path))


def test_a_variant_is_chosen_by_its_gain_within_the_rounds() -> None:
    """The clock halves after the second round: medians of durations alone would compare different frequencies."""
    slowing = [1.0, 1.0, 2.0, 2.0, 2.0]
    seconds = {
        "forward": {"in-place": slowing, "packed": [0.9 * t for t in slowing], "tall": [1.1 * t for t in slowing]},
        "input gradient": {"in-place": slowing, "packed": [0.99 * t for t in slowing]},
        "weight gradient": {"in-place": slowing, "packed": [0.5, 1.1, 2.2, 2.2, 2.2]},
    }
    chosen = {"forward": "packed", "input gradient": "in-place", "weight gradient": "in-place"}
    assert choose_variants(seconds, GemmVariant.IN_PLACE) == chosen
    assert choose_variants(seconds, GemmVariant.PACKED) == {**chosen, "input gradient": "packed"}


@needs_compiler
def test_a_measurement_is_made_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[ProductShapes] = []

    def measure(shapes: ProductShapes) -> VariantSpeeds:
        calls.append(shapes)
        return FOUND if shapes == STANDARD_SHAPES else OTHER

    monkeypatch.setattr(variants, "measure_variants", measure)
    assert kept_variants(SMALL) == {}
    assert variant_speeds_here() == variant_speeds_here() == FOUND
    assert kept_variants(SMALL) == kept_variants(STANDARD_SHAPES) == {ProductKind.FORWARD: GemmVariant.PACKED}
    assert variant_speeds_here(SMALL) == variant_speeds_here(SMALL) == OTHER
    assert calls == [STANDARD_SHAPES, SMALL]
    assert kept_variants(SMALL) == {ProductKind.FORWARD: GemmVariant.IN_PLACE}
    assert kept_variants(STANDARD_SHAPES) == {ProductKind.FORWARD: GemmVariant.PACKED}


@needs_compiler
def test_the_newest_sets_of_shapes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "measure_variants", lambda shapes: FOUND)
    for rows in range(1, MOST_SETS + 3):
        variant_speeds_here(ProductShapes(rows, ((24, 40),)))
    kept = [int(name.partition(" ")[0]) for name in read_variants(variants_path(), variants_key())]
    assert kept == list(range(3, MOST_SETS + 3))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"key": {}, "sets": {"s": {"rates": {}, "chosen": {"forward": 1}}}}']
)
def test_a_damaged_file_is_no_measurement(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "variants.json"
    path.write_bytes(content)
    assert read_variants(path, {}) == {}


def test_a_file_of_another_kernel_or_with_an_unknown_variant_is_no_measurement(tmp_path: Path) -> None:
    path, key = tmp_path / "variants.json", variants_key()
    path.write_bytes(msgspec.json.encode(VariantsRecord(key, {"s": FOUND})))
    assert read_variants(path, key) == {"s": FOUND}
    assert read_variants(path, {**key, "kernels": "others"}) == {}
    unknown = VariantSpeeds({}, {"forward": "sideways"})
    path.write_bytes(msgspec.json.encode(VariantsRecord(key, {"s": FOUND, "t": unknown})))
    assert read_variants(path, key) == {}


@needs_compiler
@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ("gemm_backend=numba", None, GemmVariant.PACKED),
        ("gemm_backend=numba", {}, DEFAULT_VARIANT),
        ("gemm_backend=numba", {ProductKind.FORWARD: GemmVariant.PACKED}, GemmVariant.PACKED),
        ("gemm_backend=blas", None, DEFAULT_VARIANT),
    ],
)
def test_a_computation_uses_the_given_variants_or_the_kept_ones(
    settings: str, given: dict[ProductKind, GemmVariant] | None, expected: GemmVariant
) -> None:
    config = tiny(settings)
    kept = {STANDARD_SHAPES.name: OTHER, product_shapes(config).name: FOUND}
    path = variants_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(VariantsRecord(variants_key(), kept)))
    with gemm_settings(config, variants=given):
        assert current_variants()[ProductKind.FORWARD] is expected
    assert set(current_variants().values()) == {DEFAULT_VARIANT}


@needs_compiler
def test_every_kind_and_variant_is_measured() -> None:
    found = measure_variants(SMALL)
    assert set(found.variants()) == set(ProductKind)
    assert {frozenset(rates) for rates in found.rates.values()} == {frozenset(v.value for v in VARIANTS)}


@needs_compiler
def test_narrow_logits_are_measured_as_no_kind_of_their_own() -> None:
    found = measure_variants(ProductShapes(20, ((24, 40),)))
    assert set(found.variants()) == set(ProductKind) - {ProductKind.VOCABULARY}


def test_the_shapes_of_a_model_are_those_of_its_matrices() -> None:
    channels, context = 12, 10
    config = tiny("model.heads=2", f"model.channels={channels}", f"model.context={context}", "micro_batch=2")
    shapes = product_shapes(config)
    assert shapes.rows == 2 * context
    assert set(shapes.layers) == {(12, 36), (12, 12), (12, 48), (48, 12)}
    assert shapes.vocabulary is None


def test_large_shapes_are_cut_and_keep_their_remainders() -> None:
    config = tiny(
        "model.channels=1000", "model.heads=2", "model.vocab_size=50257", "model.context=1001", "micro_batch=1"
    )
    shapes = product_shapes(config)
    assert shapes.rows % 64 == 1001 % 64 and 192 < shapes.rows <= 256
    assert set(shapes.layers) == {(1000, 3000 - 3 * 512), (1000, 1000), (1000, 4000 - 5 * 512), (4000 - 5 * 512, 1000)}
    assert shapes.vocabulary is not None and shapes.vocabulary[1] % 512 == 50257 % 512


def test_the_doctor_marks_the_chosen_variant() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with console.capture() as capture:
        console.print(_variants_table(FOUND))
    header, row = capture.get().splitlines()[:2]
    assert header.split() == ["product", "in-place", "packed"]
    assert row.split() == ["forward", "100", "120*"]
