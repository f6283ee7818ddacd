"""Processors that kernels are compiled for, by the names of LLVM."""

from collections.abc import Mapping
from dataclasses import dataclass

_V2 = "64bit cmov cx8 fxsr mmx sse sse2 cx16 popcnt sahf sse3 ssse3 sse4.1 sse4.2"
_V3 = f"{_V2} avx avx2 bmi bmi2 crc32 f16c fma lzcnt movbe xsave"
_SKYLAKE_X = f"{_V3} aes pclmul avx512f avx512bw avx512cd avx512dq avx512vl"
_ICE_LAKE = (
    f"{_SKYLAKE_X} avx512bitalg avx512ifma avx512vbmi avx512vbmi2 avx512vnni avx512vpopcntdq gfni vaes vpclmulqdq"
)
_SAPPHIRE_RAPIDS = f"{_ICE_LAKE} avx512bf16 avx512fp16 avxvnni amx-bf16 amx-int8 amx-tile"
_ZEN4 = f"{_ICE_LAKE} avx512bf16"
_ZEN5 = f"{_ZEN4} avxvnni"

X86_64, AARCH64 = "x86_64", "aarch64"


@dataclass(frozen=True)
class Processor:
    """A processor to compile for."""

    title: str
    cpu: str  # name of LLVM: instruction costs, and features that no kernel asks for
    features: str  # names of LLVM, between spaces
    without: str = ""  # features of `cpu` to leave out
    architecture: str = X86_64

    @property
    def triple(self) -> str:
        """The target triple."""
        return f"{self.architecture}-unknown-linux-gnu"

    @property
    def numba_features(self) -> str:
        """The value of ``NUMBA_CPU_FEATURES``."""
        return ",".join([f"+{name}" for name in self.features.split()] + [f"-{name}" for name in self.without.split()])

    def runs_on(self, architecture: str, features: Mapping[str, bool]) -> bool:
        """Return True if a machine of this architecture and features can run the compiled code."""
        return architecture == self.architecture and all(features.get(name, False) for name in self.features.split())


BASELINE = Processor("x86-64", "x86-64", "64bit cmov cx8 fxsr mmx sse sse2")
# SSE4a and VP2INTERSECT are AMD's alone and no kernel gains from them; without them, code for Zen runs on Intel.
PROCESSORS = (
    BASELINE,
    Processor("x86-64-v3", "x86-64-v3", _V3),
    Processor("Skylake-X", "skylake-avx512", _SKYLAKE_X),
    Processor("Ice Lake", "icelake-server", _ICE_LAKE),
    Processor("Sapphire Rapids", "sapphirerapids", _SAPPHIRE_RAPIDS),
    Processor("Zen 4", "znver4", _ZEN4, without="sse4a"),
    Processor("Zen 5", "znver5", _ZEN5, without="sse4a avx512vp2intersect"),
    Processor("Arm", "neoverse-n1", "neon fp-armv8 fullfp16 dotprod lse rdm", architecture=AARCH64),
)
"""Processors of `make targets`."""
ARM = PROCESSORS[-1]
