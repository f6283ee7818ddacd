"""A run that compiles its kernels and a run that loads them from the cache have the same trajectory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from threadloom.kernels.compiling.jit import JIT_ENABLED

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(500),
    pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code"),
]

RUN = """
import hashlib, sys
from threadloom.kernels import bits16, float32
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.loading import apply_overrides, load_config
from threadloom.stages.data.batches import RandomTokens
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.training.sequential import replay
from threadloom.stages.training.training import Training
from threadloom.stages.training.warmup import compile_kernels

overrides = ["steps=2", f"precision={sys.argv[1]}", "model.layers=2"]
config = resolve(apply_overrides(load_config("nanogpt-cpu"), overrides), 2, 65)
if "warm" in sys.argv:
    compile_kernels(lambda _: None, config.precision)
    room = bits16 if config.precision.value in ("bf16", "fp16") else float32
    assert not room.blocks_backward.stats.cache_misses, "the second process has compiled it"
training = Training(config, RandomTokens(config.model.geometry(), config.batch_sizes, config.seed))
with gemm_settings(config):
    updates = list(replay(training))
with training.banks.lease(2) as lease:
    print([(update.loss, update.grad_norm) for update in updates], hashlib.sha256(lease.bank.arena.flat).hexdigest())
"""


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16", "bf16x3"])
def test_compiled_and_loaded_kernels_compute_the_same_bits(precision: str, tmp_path: Path) -> None:
    def run(cache: str, *arguments: str) -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / cache), "THREADLOOM_ALLOW_SLOW": "1"}
        command = [sys.executable, "-c", RUN, precision, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=True).stdout

    compiled = run("one process")
    assert run("one process") == compiled
    assert run("two processes", "warm") == compiled
    assert run("two processes", "warm") == compiled
