"""Long contexts train in memory that grows linearly with the context: nothing has a row and a column per token."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.stages.support import LLAMA, TINY, planned, tiny
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.config import Config, Precision

ROOT = Path(__file__).parents[3]
CONTEXTS = (2048, 4096, 8192)
SQUARE = 4 * 8192**2
"""Bytes of a float32 matrix with a row and a column per token."""


@pytest.mark.parametrize("precision", [precision for precision in Precision if precision is not Precision.AUTO])
@pytest.mark.parametrize("base", [TINY, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("packing", ["windows", "documents"], ids=["one-document", "borders"])
def test_the_plan_is_linear(base: Config, precision: Precision, packing: str) -> None:
    short, middle, long = (
        planned(tiny(f"model.context={context}", f"precision={precision.value}", f"data.packing={packing}", base=base))
        for context in CONTEXTS
    )
    for part in short:
        assert long[part] - middle[part] == 2 * (middle[part] - short[part]), part


RUN = """
import json, sys
from pathlib import Path
from tests.stages.memory.test_long_contexts import long_model
from tests.stages.support import build, planned, run_threads, tiny
from threadloom.stages.console.json_worker import peak_resident_bytes, resident_bytes
from threadloom.stages.memory.graph_items import Update

results = []
for precision in ("float32", "bf16"):
    for family in ("gpt2", "llama"):
        base = long_model(family)
        run_threads(build(tiny(f"precision={precision}", "model.context=16", base=base)))  # compiled before it counts
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of the next run
        before = resident_bytes()
        config = tiny(f"precision={precision}", base=base)
        losses = [event.loss for event in run_threads(build(config)) if isinstance(event, Update)]
        plan = sum(planned(config, evaluates=False, saves=False).values())
        results.append([f"{family} {precision}", losses, plan, peak_resident_bytes() - before])
print(json.dumps(results))
"""


def long_model(family: str) -> Config:
    """Return a tiny model of two layers that trains on two sequences of 8192 tokens."""
    base = {"gpt2": TINY, "llama": LLAMA}[family]
    model = msgspec.structs.replace(base.model, context=CONTEXTS[-1], layers=2)
    return msgspec.structs.replace(base, model=model, batch_size=1, lanes=1, steps=2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can set back the peak memory of a process")
@pytest.mark.skipif(not JIT_ENABLED, reason="long sequences need the compiler")
@pytest.mark.timeout(300)  # may compile the kernels of two architectures in two precisions
def test_sequences_of_8192_train_in_the_memory_of_the_plan() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", RUN], text=True, stdout=subprocess.PIPE, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    results = json.loads(answer.stdout)
    assert len(results) == 4
    for name, losses, plan, grown in results:
        assert len(losses) == 2, name
        assert all(2.0 < loss < 3.2 for loss in losses), f"{name}: not near ln 13, {losses}"
        assert grown < 1.1 * plan + SQUARE / 8, f"{name}: planned {plan:,} bytes, used {grown:,}"
