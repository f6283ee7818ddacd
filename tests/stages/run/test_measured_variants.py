"""A run computes in the variants of the GEMM that it has measured, even if they cannot be kept."""

from pathlib import Path

import pytest

from tests.stages.support import STORY, story
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.matmul import DEFAULT_VARIANT, GemmVariant, ProductKind
from threadloom.kernels.matmul.variants import current_variants
from threadloom.stages.run import session
from threadloom.stages.speeds import variants
from threadloom.stages.speeds.shapes import ProductShapes
from threadloom.stages.speeds.variants import VariantSpeeds

pytestmark = [pytest.mark.timeout(60), STORY, pytest.mark.skipif(not JIT_ENABLED, reason="variants are compiled code")]

FOUND = VariantSpeeds({"forward": {"in-place": 100.0, "packed": 120.0}}, {"forward": "packed"})


class Begun(Exception):
    """Raised in the place of the training."""


@pytest.mark.parametrize(
    ("setting", "tuned", "expected"),
    [
        ("gemm_backend=numba", True, GemmVariant.PACKED),
        ("gemm_backend=numba", False, DEFAULT_VARIANT),
        ("gemm_backend=blas", True, DEFAULT_VARIANT),
    ],
)
def test_a_run_uses_what_it_measures_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, tuned: bool, expected: GemmVariant
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("THREADLOOM_CACHE", str(tmp_path / "file"))  # no folder can be made there
    measured: list[ProductShapes] = []
    used: list[GemmVariant] = []

    def measure(shapes: ProductShapes) -> VariantSpeeds:
        measured.append(shapes)
        return FOUND

    def begin(_: object) -> None:
        used.append(current_variants()[ProductKind.FORWARD])
        raise Begun

    monkeypatch.setattr(variants, "measure_variants", measure)
    monkeypatch.setattr(session, "compile_kernels_of", begin)
    config = story(tmp_path, "steps=1", setting)
    with pytest.raises(Begun):
        session.train(config, tmp_path / "run", tuned=tuned)
    assert used == [expected]
    if expected is GemmVariant.PACKED:
        [shapes] = measured
        assert shapes.rows == config.model.context * (config.micro_batch or 0) or config.micro_batch is None
    else:
        assert not measured
