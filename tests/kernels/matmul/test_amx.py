"""The AMX kernel without AMX: its schedule on NumPy tiles, and the machine code compiled for a processor with AMX.

`test_bf16.py` runs the compiled schedule within whole products, on AMX or on emulated tiles.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.error_bounds import product_error
from tests.kernels.bits16.support import numbers, random_bits
from tests.kernels.comparison import assert_within
from tests.kernels.machine_code import innermost_loops
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.amx import K_STEP, LOADS, PRODUCTS, RESULTS, TILE_SIZE
from threadloom.kernels.matmul.operands import Op
from threadloom.kernels.matmul.pack import pack_bf16, packed_shape

ROOT = Path(__file__).resolve().parents[3]
SAPPHIRE_RAPIDS = "+amx-bf16,+amx-tile,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512bf16,+avx2,+avx,+fma,+f16c,+bmi2"
COMPILE = """
import sys
from threadloom.kernels.compiling import numba_type
from threadloom.kernels.matmul.bf16_kernel import Bf16GemmArgs, run_bf16
signature = (numba_type(Bf16GemmArgs),)
run_bf16.compile(signature)
sys.stdout.write(run_bf16.inspect_asm()[signature])
"""


def test_the_schedule_on_numpy_tiles() -> None:
    """Interpret the table with Intel's definition of TDPBF16PS: every load reads the right bytes."""
    rng = np.random.default_rng(0)
    steps = 3
    inner = steps * K_STEP
    a, b = random_bits(rng, TILE_SIZE, inner + 6), random_bits(rng, inner, TILE_SIZE)
    packed = np.zeros(packed_shape(inner, TILE_SIZE), np.uint32)
    pack_bf16(b, Op.N, packed)
    operands, strides = (a.view(np.uint8).reshape(-1), packed.view(np.uint8).reshape(-1)), (2 * (inner + 6), 128)
    tiles = np.zeros((8, 16, 64), np.uint8)
    for step in range(steps):
        for load in LOADS:
            stride = strides[load.operand]
            start = load.row * stride + load.column + step * load.step
            for row in range(16):
                tiles[load.tile, row] = operands[load.operand][start + row * stride :][:64]
        for product in PRODUCTS:
            left = numbers(tiles[product.left].view(np.uint16)).reshape(16, 16, 2)  # row, pair, half
            right = numbers(tiles[product.right].view(np.uint16)).reshape(16, 16, 2)  # pair, column, half
            total = tiles[product.result].view(np.float32)
            total += np.einsum("mph,pnh->mn", left, right).astype(np.float32)
    out = np.full((TILE_SIZE, TILE_SIZE), np.nan, np.float32)
    for result in RESULTS:
        column = result.column // 4
        out[result.row : result.row + 16, column : column + 16] = tiles[result.tile].view(np.float32)
    wide_a, wide_b = numbers(a)[:, :inner], numbers(b)
    assert_within(out, wide_a @ wide_b, product_error(wide_a, wide_b))


@pytest.mark.skipif(not JIT_ENABLED or sys.platform != "linux", reason="compiles for x86-64 Linux")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="Numba compiles for the architecture it runs on")
def test_machine_code_for_sapphire_rapids(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "sapphirerapids",
        "NUMBA_CPU_FEATURES": SAPPHIRE_RAPIDS,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    code = done.stdout
    # A call configures the tiles once and releases them once.
    assert code.count("ldtilecfg") == code.count("tilerelease") == 1
    # The accumulators start from zero or from the result and stay in their tiles: no multiplying loop stores one.
    assert code.count("tilezero") >= len(RESULTS)
    assert code.count("tilestored") >= len(RESULTS)
    loops = [loop for loop in innermost_loops(code) if any(line.startswith("tdpbf16ps") for line in loop)]
    assert loops
    for loop in loops:
        names = Counter(line.split()[0].removesuffix("t1") for line in loop if "%tmm" in line)
        steps = names["tdpbf16ps"] // len(PRODUCTS)  # more than one if the compiler unrolled the loop
        assert steps > 0
        assert names == {"tdpbf16ps": steps * len(PRODUCTS), "tileloadd": steps * len(LOADS)}
    assert "vdpbf16ps" in code  # for the rows that fill no tile
