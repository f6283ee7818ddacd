"""The memory of training in float32: GEMMs read the master weights, activations are float32.

Shapes are computed from the geometry; all arrays are allocated before the first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from threadloom.kernels import ATTENTION_TILE, Activations, Scratch
from threadloom.pipeline import Arena
from threadloom.stages.memory.precision_memory import (
    MicroBatchSlot,
    allocate_token_ids,
    logits_chunk_rows,
    token_ids_bytes,
)
from threadloom.stages.models import Geometry, Shape

LOGITS_BYTES = 32 << 20
"""Upper bound of the bytes of one chunk's logits; the output projection processes a micro-batch chunk by chunk."""
_FLOAT_BYTES = 4


def activation_shapes(geometry: Geometry, sequences: int) -> dict[str, Shape]:
    """Return the shape of every field of `kernels.Activations` for micro-batches of `sequences`."""
    n, c, f, t, b = geometry.layers, geometry.channels, geometry.hidden, geometry.context, sequences
    r = b * t
    return {
        "x": (n + 1, r, c),
        "ln1_mean": (n, r),
        "ln1_rstd": (n, r),
        "qkv": (n, r, 3 * c),
        "attn": (n, r, c),
        "attn_lse": (n, b, geometry.heads, t),
        "x_mid": (n, r, c),
        "ln2_mean": (n, r),
        "ln2_rstd": (n, r),
        "fc": (n, r, f),
        "h": (r, c),
        "gelu": (r, f),
        "scores": (ATTENTION_TILE, t),
    }


def scratch_shapes(geometry: Geometry, sequences: int) -> dict[str, Shape]:
    """Return the shape of every field of `kernels.Scratch` for micro-batches of `sequences`."""
    c, f, t = geometry.channels, geometry.hidden, geometry.context
    r = sequences * t
    return {
        "dx": (r, c),
        "dh": (r, c),
        "d_attn": (r, c),
        "d_qkv": (r, 3 * c),
        "d_fc": (r, f),
        "gelu": (r, f),
        "h": (r, c),
        "scores": (2, ATTENTION_TILE, t),
        "logits": (logits_chunk_rows(geometry.vocabulary, r, LOGITS_BYTES), geometry.vocabulary),
        "lnf_mean": (r,),
        "lnf_rstd": (r,),
    }


@dataclass(frozen=True)
class Float32Slot(MicroBatchSlot):
    """A slot whose activations are float32."""

    activations: Activations


class Float32Memory:
    """Arrays of training in float32. Implements `PrecisionMemory`."""

    packed_bytes = 0

    def __init__(self, geometry: Geometry, sequences: int) -> None:
        self._rows = sequences * geometry.context
        self._activations = activation_shapes(geometry, sequences)
        self._scratch = scratch_shapes(geometry, sequences)

    @property
    def slot_bytes(self) -> int:
        """Size of one slot."""
        return token_ids_bytes(self._rows) + _bytes(self._activations)

    @property
    def scratch_bytes(self) -> int:
        """Size of the scratch of one backward pass."""
        return _bytes(self._scratch)

    @property
    def logits_shape(self) -> Shape:
        """Shape of the scratch of a loss without gradient."""
        return self._scratch["logits"]

    def allocate_packed(self) -> None:
        """Return None: GEMMs read the master."""

    def allocate_slot(self) -> Float32Slot:
        """Allocate the arrays of one micro-batch in flight."""
        ids, targets = allocate_token_ids(self._rows)
        views = Arena(self._activations)
        return Float32Slot(ids, targets, Activations(*(views[name] for name in Activations._fields)))

    def allocate_scratch(self) -> Scratch:
        """Allocate the scratch of one backward pass."""
        views = Arena(self._scratch)
        return Scratch(*(views[name] for name in Scratch._fields))


def _bytes(shapes: Mapping[str, Shape]) -> int:
    return sum(map(prod, shapes.values())) * _FLOAT_BYTES
