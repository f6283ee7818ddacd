"""Properties of x86-64 machine code in AT&T syntax that do not depend on the instructions a compiler selects."""

import re

_LABEL = re.compile(r"^(\.?LBB\d+_\d+):", re.MULTILINE)
_CONVERSION = re.compile(r"vcvt(?:p[sh]2p[sh]x?|ps2phx[xyz]|s[sh]2s[sh])\b")
_VECTOR_CONVERSION = re.compile(r"vcvt(?:ps2phx[yz]|p[sh]2p[sh]x?)\b")


def innermost_loops(code: str) -> list[list[str]]:
    """Return the instructions of each loop that is a single basic block, one string per instruction.

    The block runs from its label to the last jump back to it. A loop whose body branches is not among them.
    """
    loops = []
    labels = list(_LABEL.finditer(code))
    for label, following in zip(labels, [*labels[1:], None], strict=True):
        block = code[label.end() : following.start() if following else len(code)]
        back = list(re.finditer(rf"^\s+j\w+\s+{re.escape(label[1])}$", block, re.MULTILINE))
        if back:
            body = (line.strip() for line in block[: back[-1].end()].splitlines())
            loops.append([line for line in body if line and not line.startswith((".", "#"))])
    return loops


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
