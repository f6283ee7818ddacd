"""Description of this machine: CPU, features and caches, and the cores and memory available to this process.

It is read from the system's tables, without any measurement (`stages.tools.doctor` measures). A value that the system
does not provide is None, as several are on macOS and ARM.
"""

import hashlib
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path

from threadloom.pipeline import available_cores, system_memory

FEATURES = (
    "sse2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512vnni",
    "avx512bf16",
    "avx512fp16",
    "avxvnni",
    "amx-tile",
    "amx-int8",
    "amx-bf16",
    "neon",
    "bf16",
    "sve",
)
"""CPU features, in LLVM's names, that decide which instructions compiled code can use; others are not reported."""


class VectorWidth(Enum):
    """The widest vectors that compiled kernels can use. The value is the name in reports."""

    PLAIN = "plain"  # the baseline of the architecture: SSE2 on x86-64, NEON on ARM (128 bits)
    AVX2 = "AVX2"  # 256 bits with fused multiply-add
    AVX512 = "AVX-512"  # 512 bits with instructions on 8, 16 and 32-bit elements (servers and Zen 4)

    @property
    def bits(self) -> int:
        """The width of one register in bits."""
        return {VectorWidth.PLAIN: 128, VectorWidth.AVX2: 256, VectorWidth.AVX512: 512}[self]


@dataclass(frozen=True)
class Machine:
    """The machine as this process sees it. Sizes are in bytes; None where the system does not provide a value."""

    cpu: str  # model name
    microarchitecture: str  # LLVM's name for it ("znver5"), the target of compiled kernels
    architecture: str  # "x86_64", "arm64"
    system: str  # "Linux", "Darwin"
    logical_cores: int  # hardware threads available to this process, within its affinity and container quota
    physical_cores: int | None  # physical cores of those threads; fewer if hardware threads share cores
    features: tuple[str, ...]  # the FEATURES that the CPU has and the system has enabled
    l1d: int | None  # data cache per core
    l2: int | None  # per core, or per group of cores that share it
    l3: int | None  # per group of cores that share it
    memory_total: int | None  # installed memory, or the container's limit if lower
    memory_available: int | None  # available now without swapping

    @property
    def vector_width(self) -> VectorWidth:
        """The widest vectors that compiled kernels can use."""
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(self.features):
            return VectorWidth.AVX512
        if {"avx2", "fma"} <= set(self.features):
            return VectorWidth.AVX2
        return VectorWidth.PLAIN

    @property
    def has_amx_bf16(self) -> bool:
        """True if the CPU multiplies bfloat16 tiles (AMX)."""
        return {"amx-tile", "amx-bf16"} <= set(self.features)

    def fingerprint(self) -> str:
        """Return an identifier for machines that can share tuned settings, usable as a file name.

        It covers the CPU, its caches and the available cores, but not the memory, which changes from run to run.
        """
        lasting = asdict(self)
        del lasting["memory_total"], lasting["memory_available"]
        digest = hashlib.sha256(repr(sorted(lasting.items())).encode()).hexdigest()[:10]
        return f"{_slug(self.microarchitecture or self.architecture)}-{self.logical_cores}c-{digest}"


NO_HOME = Path("/nonexistent")
"""Home directory of a user without one, by convention: it does not exist and cannot be created."""


def cache_root() -> Path:
    """Return the folder of everything measured on this machine, which can be deleted and measured again.

    It is ``THREADLOOM_CACHE``, or ``threadloom`` in ``XDG_CACHE_HOME``, by default ``~/.cache``. It may be one that
    cannot be written.
    """
    if given := os.environ.get("THREADLOOM_CACHE"):
        return Path(given).absolute()
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / "threadloom"
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and the user is in no table of the system
        home = NO_HOME
    return (home if home.is_absolute() else NO_HOME) / ".cache/threadloom"


def detect(root: Path = Path("/")) -> Machine:
    """Return the description of this machine. /proc and /sys are read below `root`, which tests replace.

    The processor is read once per process; the available cores and memory are read at each call.
    """
    total, available = _memory(root)
    return replace(
        _processor(root, _affinity()),
        logical_cores=available_cores(root),
        memory_total=total,
        memory_available=available,
    )


@cache
def _processor(root: Path, cpus: tuple[int, ...]) -> Machine:
    """Return the description of the processor, as far as a process may use `cpus`, without memory."""
    name, features = _llvm_host()
    return Machine(
        cpu=_cpu_model(root) or name or platform.machine(),
        microarchitecture=name,
        architecture=platform.machine(),
        system=platform.system(),
        logical_cores=len(cpus),
        physical_cores=_physical_cores(root, cpus),
        features=features,
        l1d=_cache(root, cpus, 1, "Data", "hw.l1dcachesize"),
        l2=_cache(root, cpus, 2, "Unified", "hw.l2cachesize"),
        l3=_cache(root, cpus, 3, "Unified", "hw.l3cachesize"),
        memory_total=None,
        memory_available=None,
    )


def _llvm_host() -> tuple[str, tuple[str, ...]]:
    """Return LLVM's name for the CPU, and the FEATURES that it compiles for."""
    import llvmlite.binding as llvm

    try:
        present = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot query this platform
        present = {}
    return str(llvm.get_host_cpu_name()), tuple(name for name in FEATURES if present.get(name))


def _affinity() -> tuple[int, ...]:
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except AttributeError:
        return tuple(range(os.cpu_count() or 1))


def _cpu_model(root: Path) -> str | None:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else _sysctl("machdep.cpu.brand_string")


def _physical_cores(root: Path, cpus: tuple[int, ...]) -> int | None:
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
        if core is None:
            count = _sysctl("hw.physicalcpu")
            return int(count) if count else None
        cores.add((package, core))
    return len(cores)


def _cache(root: Path, cpus: tuple[int, ...], level: int, kind: str, sysctl_name: str) -> int | None:
    """Return the size of one cache of the first core that this process may use."""
    for folder in sorted((root / f"sys/devices/system/cpu/cpu{cpus[0]}/cache").glob("index*")):
        if _read(folder / "level") == str(level) and _read(folder / "type") in (kind, "Unified"):
            return _bytes(_read(folder / "size"))
    size = _sysctl(sysctl_name)
    return (int(size) or None) if size else None


def _bytes(text: str | None) -> int | None:
    """Parse a size as sysfs writes it: 48K, 1024K."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text or "")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else None


def _memory(root: Path) -> tuple[int | None, int | None]:
    """Return total and available memory, both capped at the limits of this process."""
    total, available = system_memory(root)
    if total is None:
        size = _sysctl("hw.memsize")
        total = int(size) if size else None
    return total, available


def _sysctl(name: str) -> str | None:
    """Return a value of macOS's sysctl table; None on other systems."""
    if platform.system() != "Darwin":
        return None
    try:
        answer = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, encoding="utf-8", check=False)
    except OSError:  # a sandbox that permits no processes
        return None
    return answer.stdout.strip() or None


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError:
        return None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


BUSY = 0.5
"""Load average above which measurements are unreliable."""


def load_average() -> float | None:
    """Return the mean number of runnable threads in the last minute; None if the system does not provide it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def load_warning() -> str | None:
    """Return a warning for measurements if other programs keep this machine busy, else None."""
    load = load_average()
    if load is None or load <= BUSY:
        return None
    return f"the load average is {load:.1f}: other programs are running, and measured times may be too long"
