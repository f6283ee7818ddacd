"""Properties of machine code that do not depend on the instructions a compiler selects.

The code is x86-64's in AT&T syntax, or 64-bit Arm's.
"""

import re
from itertools import zip_longest

_LABEL = re.compile(r"^(\.?LBB\d+_\d+):", re.MULTILINE)
_X86_ARITHMETIC = re.compile(
    r"v?(?:add|sub|mul|div|min|max|sqrt|dp\w*|addsub|hadd|rcp\w*|rsqrt\w*|fn?m(?:add|sub)\w*)(?:p[sdh]|bf16ps)\b"
)
_ARM_ARITHMETIC = re.compile(r"f(?:n?m(?:add|sub|ul|la|ls)|add|sub|div|sqrt|max\w*|min\w*|mulx?)\b|bfdot\b")
_X86_REGISTERS = {"%zmm": 512, "%ymm": 256, "%xmm": 128}
_ARM_ARRANGEMENT = re.compile(r"\bv\d+\.(\d+)([hsd])\b")
_ARM_ELEMENT_BITS = {"h": 16, "s": 32, "d": 64}
_TILE_PRODUCT = re.compile(r"tdp\w+\b")
_CONVERSION = re.compile(r"vcvt(?:p[sh]2p[sh]x?|ps2phx[xyz]|s[sh]2s[sh])\b")
_VECTOR_CONVERSION = re.compile(r"vcvt(?:ps2phx[yz]|p[sh]2p[sh]x?)\b")


def innermost_loops(code: str) -> list[list[str]]:
    """Return the instructions of each loop that is a single basic block, one string per instruction.

    The block runs from its label to the last jump back to it. A loop whose body branches is not among them.
    """
    loops = []
    labels = list(_LABEL.finditer(code))
    for label, following in zip_longest(labels, labels[1:]):
        block = code[label.end() : following.start() if following else len(code)]
        back = list(re.finditer(rf"^\s+[a-z][\w.]*\s+(?:.*,\s*)?{re.escape(label[1])}$", block, re.MULTILINE))
        if back:
            body = (line.strip() for line in block[: back[-1].end()].splitlines())
            loops.append([line for line in body if line and not line.startswith((".", "#"))])
    return loops


def vector_bits(code: str) -> int:
    """Return the width in bits of the widest floating-point arithmetic in innermost loops; 0 if it has no vectors.

    A register that an instruction names as a vector counts in full; moves, conversions and integer arithmetic do not
    count. AMX tiles are not vectors: see `multiplies_tiles`.
    """
    return max((_width(line) for loop in innermost_loops(code) for line in loop), default=0)


def multiplies_tiles(code: str) -> bool:
    """Return True if an innermost loop multiplies AMX tiles."""
    return any(_TILE_PRODUCT.match(line) for loop in innermost_loops(code) for line in loop)


def _width(instruction: str) -> int:
    if _X86_ARITHMETIC.match(instruction):
        return next((bits for name, bits in _X86_REGISTERS.items() if name in instruction), 0)
    if _ARM_ARITHMETIC.match(instruction):
        arrangement = _ARM_ARRANGEMENT.search(instruction)
        return int(arrangement[1]) * _ARM_ELEMENT_BITS[arrangement[2]] if arrangement else 0
    return 0


def half_conversions(instructions: list[str]) -> list[str]:
    """Return the instructions that convert between float16 and float32, of F16C and of AVX512-FP16, scalar or not."""
    return [line for line in instructions if _CONVERSION.match(line)]


def converts_vectors(instruction: str) -> bool:
    """Return True if a conversion of float16 has at least 256 bits of float32 on one side.

    These are VCVTPS2PH and VCVTPH2PS, and VCVTPS2PHX and VCVTPH2PSX, with a YMM or ZMM register; or with the suffix y
    or z, by which AT&T syntax gives the width of a source in memory. VCVTSS2SH and VCVTSH2SS convert one number.
    """
    name = instruction.split(maxsplit=1)[0]
    wide = name.endswith(("xy", "xz")) or "%ymm" in instruction or "%zmm" in instruction
    return wide and _VECTOR_CONVERSION.match(name) is not None
