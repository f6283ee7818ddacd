"""The measured choice of the variants of Numba's GEMM: the rule, the record, and how a run gets it."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.stages.support import tiny
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.matmul import VARIANTS, GemmVariant, ProductKind
from threadloom.kernels.matmul.variants import current_variants
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.speeds import variants
from threadloom.stages.speeds.variants import (
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
    assert choose_variants(seconds) == chosen


@needs_compiler
def test_a_measurement_is_made_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measure() -> VariantSpeeds:
        calls.append(1)
        return FOUND

    monkeypatch.setattr(variants, "measure_variants", measure)
    assert kept_variants() == {}
    assert variant_speeds_here() == variant_speeds_here() == FOUND
    assert len(calls) == 1
    assert kept_variants() == {ProductKind.FORWARD: GemmVariant.PACKED}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"key": {}, "speeds": {"rates": {}, "chosen": {"forward": 1}}}']
)
def test_a_damaged_file_is_no_measurement(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "variants.json"
    path.write_bytes(content)
    assert read_variants(path, {}) is None


def test_a_file_of_another_kernel_or_with_an_unknown_variant_is_no_measurement(tmp_path: Path) -> None:
    path, key = tmp_path / "variants.json", variants_key()
    path.write_bytes(msgspec.json.encode(VariantsRecord(key, FOUND)))
    assert read_variants(path, key) == FOUND
    assert read_variants(path, {**key, "kernels": "others"}) is None
    unknown = VariantSpeeds({}, {"forward": "sideways"})
    path.write_bytes(msgspec.json.encode(VariantsRecord(key, unknown)))
    assert read_variants(path, key) is None


@needs_compiler
@pytest.mark.parametrize(
    ("settings", "tuned", "expected"),
    [
        (("gemm_backend=numba",), True, GemmVariant.PACKED),
        (("gemm_backend=numba",), False, GemmVariant.IN_PLACE),
        (("gemm_backend=blas",), True, GemmVariant.IN_PLACE),
    ],
)
def test_a_run_computes_in_the_kept_variants(settings: tuple[str, ...], tuned: bool, expected: GemmVariant) -> None:
    path = variants_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(VariantsRecord(variants_key(), FOUND)))
    config = tiny(*settings)
    with gemm_settings(config, tuned=tuned):
        assert current_variants()[ProductKind.FORWARD] is expected
    assert set(current_variants().values()) == {GemmVariant.IN_PLACE}


@needs_compiler
def test_every_kind_and_variant_is_measured() -> None:
    found = measure_variants()
    assert set(found.variants()) == set(ProductKind)
    assert {frozenset(rates) for rates in found.rates.values()} == {frozenset(v.value for v in VARIANTS)}


def test_the_doctor_marks_the_chosen_variant() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with console.capture() as capture:
        console.print(_variants_table(FOUND))
    header, row = capture.get().splitlines()[:2]
    assert header.split() == ["product", "in-place", "packed"]
    assert row.split() == ["forward", "100", "120*"]
