"""Low precision on processors that are not here: the same kernels compiled for less, against the same references.

Each runs `tests/kernels/bits16/masked.py` in a process that compiles everything for a masked target; the compiled
kernels are kept in pytest's own cache, so that only the first run after a change is slow.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding
import pytest

from threadloom.kernels.compiling.jit import JIT_ENABLED

pytestmark = [
    pytest.mark.skipif(not JIT_ENABLED, reason="without the compiler there is no target to mask"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the masks are x86-64's"),
]

ROOT = Path(__file__).parents[3]
AVX2 = ("avx", "avx2", "fma", "f16c")


def _host() -> dict[str, bool]:
    try:
        return dict(llvmlite.binding.get_host_cpu_features())
    except RuntimeError:
        return {}


@dataclass(frozen=True)
class Mask:
    """A target, in LLVM's words."""

    cpu: str
    features: str


def _without(prefix: str) -> Mask:
    """Return the host without the features of a family."""
    features = (f"{'+' if on and not name.startswith(prefix) else '-'}{name}" for name, on in sorted(_host().items()))
    return Mask(llvmlite.binding.get_host_cpu_name(), ",".join(features))


BASELINE = Mask("x86-64", "+sse,+sse2")
NO_AVX512 = Mask("x86-64-v3", ",".join(f"+{name}" for name in AVX2))


def run_masked(mask: Mask, cache: Path, *arguments: str) -> dict[str, Any]:
    """Run the checks on a target and return what it found there."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NUMBA_CPU_NAME": mask.cpu,
        "NUMBA_CPU_FEATURES": mask.features,
        "NUMBA_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-m", "tests.kernels.bits16.masked", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{done.returncode}\n{done.stderr[-4000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for compiled kernels that lasts, if pytest keeps a cache; Numba tells targets apart in it."""
    lasting: pytest.Cache | None = getattr(request.config, "cache", None)
    return tmp_path if lasting is None else lasting.mkdir("lowp-masked")


def test_the_baseline_of_x86_64(cache: Path) -> None:
    assert run_masked(BASELINE, cache) == {
        "path": "FLOAT32",
        "fp16_conversion": False,
        "has": [False, False, False],
        "lanes": 8,
        "held": ["FLOAT32"],
    }


@pytest.mark.skipif(not all(map(_host().get, AVX2)), reason="the processor has no AVX2")
def test_attention_without_avx512(cache: Path) -> None:
    found = run_masked(NO_AVX512, cache, "--attention")
    assert (found["lanes"], found["held"]) == (8, ["FLOAT32"])


@pytest.mark.soak
def test_the_baseline_with_every_form_of_array(cache: Path) -> None:
    assert run_masked(BASELINE, cache, "--all")["held"] == ["FLOAT32"]


@pytest.mark.soak
@pytest.mark.skipif(not all(map(_host().get, AVX2)), reason="the processor has no AVX2")
def test_without_avx512(cache: Path) -> None:
    found = run_masked(NO_AVX512, cache, "--all")
    assert (found["path"], found["fp16_conversion"], found["lanes"]) == ("FLOAT32", True, 8)
    assert (found["has"], found["held"]) == ([False, False, True], ["FLOAT32"])


@pytest.mark.soak
def test_without_amx(cache: Path) -> None:
    host = _host()
    dot = bool(host.get("avx512bf16") and host.get("avx512f"))
    found = run_masked(_without("amx"), cache, "--all")
    assert found["path"] == ("AVX512" if dot else "FLOAT32")
    assert found["has"][:2] == [False, dot]
    # With AVX-512 there is room for AMX's tiles in memory: its schedule is held too.
    emulated = ["AMX"] if host.get("avx512f") else []
    assert found["held"] == ["FLOAT32", *(["AVX512"] if dot else []), *emulated]
