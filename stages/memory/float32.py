"""The memory of a training run: what is allocated before the first step, and how its parts are named.

Everything here is made from the geometry's tables (`parameters.parameter_shapes` and the two below) in aligned arenas;
nothing is allocated after that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from threadloom.kernels import ATTENTION_TILE, Activations, Scratch, TokenIds, Weights
from threadloom.pipeline import Arena
from threadloom.stages.memory.loss_scale import ScaleState
from threadloom.stages.models import Geometry, Shape, parameter_shapes

LOGITS_BYTES = 32 << 20
"""Most bytes that the logits of one chunk of rows take; the head works through a micro-batch chunk by chunk."""


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
        "scores": (ATTENTION_TILE, t),
        "d_scores": (ATTENTION_TILE, t),
        "logits": (logits_rows(geometry.vocabulary, r), geometry.vocabulary),
        "lnf_mean": (r,),
        "lnf_rstd": (r,),
    }


def logits_rows(vocabulary: int, rows: int) -> int:
    """Return how many rows' logits are made at a time: as many as fit in `LOGITS_BYTES`, in chunks of like size."""
    most = max(LOGITS_BYTES // (4 * vocabulary), 1)
    chunks = -(-rows // most)
    return -(-rows // chunks)


def as_weights(views: Mapping[str, np.ndarray]) -> Weights:
    """Return the arena's views as the tuple that kernels take."""
    return Weights(*(views[name] for name in Weights._fields))


class Bank:
    """One full copy of the weights: the float32 master, and the forms that products read where they are others."""

    def __init__(self, geometry: Geometry, forms: Any = None) -> None:
        self.arena = Arena(parameter_shapes(geometry))
        self.weights = as_weights(self.arena)
        self.packed = forms  # of `Compute.allocate_packed`; the rounded master whenever the bank can be leased
        self.scaler = ScaleState()  # of its version; written with the weights, by Clip alone once the run goes

    @property
    def nbytes(self) -> int:
        """Bytes of master and forms."""
        return self.arena.nbytes + arrays_bytes(self.packed or ())


def arrays_bytes(arrays: Iterable[Any]) -> int:
    """Return the bytes of arrays in a tuple, or in tuples of a tuple; one that appears twice counts once."""
    found: dict[int, int] = {}
    for item in arrays:
        if isinstance(item, tuple):
            found[id(item)] = arrays_bytes(item)
        else:
            found[id(item)] = item.nbytes
    return sum(found.values())


@dataclass(frozen=True)
class Slot:
    """The pre-allocated arrays of one micro-batch in flight; each precision adds its activations."""

    ids: TokenIds  # (R,)
    targets: TokenIds  # (R,)

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return self.ids.nbytes + self.targets.nbytes


@dataclass(frozen=True)
class Float32Slot(Slot):
    """A slot whose activations are float32."""

    activations: Activations

    @classmethod
    def allocate(cls, geometry: Geometry, sequences: int) -> "Float32Slot":
        """Make the arrays for micro-batches of `sequences` sequences of the full context."""
        rows = sequences * geometry.context
        tokens = Arena({"ids": (rows,), "targets": (rows,)}, np.int32)
        views = Arena(activation_shapes(geometry, sequences))
        return cls(tokens["ids"], tokens["targets"], Activations(*(views[name] for name in Activations._fields)))

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return super().nbytes + arrays_bytes(self.activations)


def allocate_scratch(geometry: Geometry, sequences: int) -> Scratch:
    """Make backward's scratch for micro-batches of `sequences` sequences."""
    views = Arena(scratch_shapes(geometry, sequences))
    return Scratch(*(views[name] for name in Scratch._fields))
