"""The number formats of tensors in files, and the rounding of float32 to them."""

import enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StoredFormat(enum.Enum):
    """A number format of the tensors in a safetensors file; the values are those of its header."""

    FLOAT32 = "F32"
    BF16 = "BF16"
    FP16 = "F16"

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 4 if self is StoredFormat.FLOAT32 else 2

    def rounded(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Return float32 values in this format, rounded to nearest, ties to even; the bits of bfloat16 are uint16.

        Values beyond the largest one become infinite.
        """
        if self is StoredFormat.FLOAT32:
            return values
        if self is StoredFormat.BF16:
            return bfloat16_bits(values)
        with np.errstate(over="ignore"):
            return values.astype("<f2")


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of float32 values rounded to bfloat16, to nearest, ties to even; NaN remains NaN."""
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # the payload of a NaN may be in the lower half alone
    return np.where(np.isnan(values), quiet, rounded).astype("<u2").reshape(values.shape)
