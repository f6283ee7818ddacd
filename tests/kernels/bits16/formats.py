"""Number formats of the tests, by their numbers alone, and bounds for one rounding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.bits16.support import nearest as nearest_bf16, numbers as bf16_numbers
from tests.reference import Array, Tensors
from threadloom.kernels.matmul.pack import DEPTH_STEP, PANEL

Shorts = NDArray[Any]
"""Bits of either 16-bit format, uint16 or int16; or float32 numbers."""

MATRICES = (
    "wte", "qkv_weight", "attn_proj_weight", "fc_weight", "mlp_proj_weight",  # GPT-2
    "head", "gate_up_weight", "down_weight",  # further ones of Llama
    *(f"{name}_{key}" for name in ("qkv", "attn_proj", "fc", "mlp_proj", "gate_up", "down") for key in "ab"),
)  # fmt: skip
"""Tensors of which the kernels read a packed copy, rounded to the format."""

FLOAT = 2.0**-24
"""Half a unit in float32's last place, relative: what one operation of the kernels' arithmetic is off by."""


@dataclass(frozen=True)
class Format:
    """Number format of activations; nothing in it is the product's."""

    name: str
    kind: np.dtype[Any]
    unit: float  # half a unit in the last place, relative: what one rounding is off by
    tiny: float  # largest absolute error of one rounding below the normal numbers
    nan: float  # a NaN: the number, or its bits

    def numbers(self, bits: Shorts) -> Array:
        """Return what bits stand for, in float64."""
        if self.kind == np.float32:
            return bits.astype(np.float64)
        if self.kind == np.int16:
            return np.ascontiguousarray(bits).view(np.float16).astype(np.float64)
        return bf16_numbers(bits)

    def nearest(self, values: NDArray[Any]) -> Shorts:
        """Return the bits of the nearest numbers, ties to even."""
        if self.kind == np.float32:
            return np.asarray(values, np.float32)
        if self.kind == np.int16:
            with np.errstate(over="ignore"):
                return np.ascontiguousarray(values, np.float32).astype(np.float16).view(np.int16)
        return nearest_bf16(np.asarray(values, np.float32))

    def packed_weights(self, weights: Tensors) -> Tensors:
        """Return the weights that the kernels read: matrices are rounded to the format once, before any arithmetic."""
        return {n: self.numbers(self.nearest(w)).reshape(w.shape) if n in MATRICES else w for n, w in weights.items()}

    def random(self, rng: np.random.Generator, *shape: int, spread: float = 1.0) -> Shorts:
        """Return normal random numbers."""
        return self.nearest((spread * rng.standard_normal(shape)).astype(np.float32))

    def rounding(self, exact: Array) -> Array:
        """Return the most by which a rounding of these numbers is off."""
        return self.unit * np.abs(exact) + self.tiny


# A bfloat16 below the normal numbers is below those of float32 too, and kernels flush it to zero. The subnormal
# numbers of float16 are normal in float32, and rounded to multiples of 2**-24.
BF16 = Format("bfloat16", np.dtype(np.uint16), 2.0**-8, 2.0**-126, 0x7FC0)
FP16 = Format("float16", np.dtype(np.int16), 2.0**-11, 2.0**-25, 0x7E00)
FORMATS = [BF16, FP16]
FP32 = Format("float32", np.dtype(np.float32), 0.0, 2.0**-126, np.nan)
EVERY_FORMAT = [FP32, *FORMATS]


def pack(bits: Shorts) -> NDArray[np.uint32]:
    """Return the packed form of a bfloat16 matrix (K, N), by its description: pairs along k in words, 32 columns."""
    inner, columns = bits.shape
    panels, pairs = -(-columns // PANEL), -(-inner // DEPTH_STEP) * DEPTH_STEP // 2
    whole = np.zeros((2 * pairs, panels * PANEL), np.uint32)
    whole[:inner, :columns] = bits
    words: NDArray[np.uint32] = (whole[0::2] + (whole[1::2] << np.uint32(16))).astype(np.uint32)
    return np.ascontiguousarray(words.reshape(pairs, panels, PANEL).transpose(1, 0, 2))
