"""The choice of the arithmetic by precision, and that a number format loads its own code only."""

import subprocess
import sys

import pytest

from threadloom.stages.config import Precision
from threadloom.stages.models import Geometry
from threadloom.stages.step.bits16 import Bits16Compute
from threadloom.stages.step.float32 import Float32Compute
from threadloom.stages.training.precisions import compute_for

pytestmark = pytest.mark.timeout(120)

RUN = """
import sys
from tests.stages.support import build, run_threads, tiny
run_threads(build(tiny("precision={precision}", "steps=1", "lanes=1"), evaluate=True))
print(*(name for name in sys.modules if "bits16" in name))
"""


@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        (Precision.FLOAT32, Float32Compute),
        (Precision.BF16X3, Float32Compute),
        (Precision.BF16, Bits16Compute),
        (Precision.FP16, Bits16Compute),
    ],
)
def test_each_precision_has_its_arithmetic(precision: Precision, kind: type) -> None:
    assert type(compute_for(precision, Geometry(5, 4, 1, 1, 8), 1)) is kind


@pytest.mark.parametrize(("precision", "loaded"), [("float32", False), ("bf16x3", False), ("bf16", True)])
def test_runs_in_float32_load_no_code_of_16_bits(precision: str, loaded: bool) -> None:
    """It would cost memory and start-up time. The third case shows that the check finds such code."""
    found = subprocess.run(
        [sys.executable, "-c", RUN.format(precision=precision)], capture_output=True, text=True, check=True
    )
    names = found.stdout.split()
    assert bool(names) is loaded, names
