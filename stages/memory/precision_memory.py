"""The arrays that training in one number format needs for micro-batches of one size: protocol and shared parts."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import TokenIds
from threadloom.kernels.common import NO_BORDERS, DocumentStarts
from threadloom.pipeline import Arena, aligned_zeros
from threadloom.stages.models import Shape


@dataclass(frozen=True)
class MicroBatchSlot:
    """The pre-allocated arrays of one micro-batch in flight; its activations are a tuple of the layout."""

    ids: TokenIds  # (R,)
    targets: TokenIds  # (R,)
    activations: Any
    dropout_key: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(1, np.uint64))
    """Key of dropout, which is one of the activations; 0: no dropout."""
    starts: DocumentStarts = field(default_factory=lambda: NO_BORDERS)
    """(R,) row within its sequence at which the document of each row begins, one of the activations; (0,): no borders
    between documents."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.ids.nbytes + self.targets.nbytes + arrays_bytes(self.activations)


class PrecisionMemory(Protocol):
    """Sizes and allocation of the arrays of one number format, for one model and one micro-batch size.

    Sizes are in bytes and exclude the padding between arrays. Nothing is allocated before a method is called.
    """

    @property
    def packed_names(self) -> Set[str]:
        """Names of the tensors that have packed weights."""

    def packed_bytes(self, names: Set[str]) -> int:
        """Return the size of the packed weights of some tensors; 0 if GEMMs read the float32 master."""

    @property
    def slot_bytes(self) -> int:
        """Size of one `MicroBatchSlot`."""

    @property
    def evaluation_slot_bytes(self) -> int:
        """Size of the slot of `allocate_evaluation_slot`."""

    @property
    def scratch_bytes(self) -> int:
        """Size of the scratch of one backward pass."""

    @property
    def logits_shape(self) -> Shape:
        """Shape of the float32 scratch of a loss without gradient: (rows of one chunk, V)."""

    def allocate_packed(self, names: Set[str] | None = None) -> Any:
        """Allocate the packed weights of some tensors, by default of all.

        Returns a named tuple, in which the fields of other tensors are arrays without elements; None if GEMMs read the
        master.
        """

    def allocate_slot(self) -> MicroBatchSlot:
        """Allocate the arrays of one micro-batch in flight."""

    def allocate_evaluation_slot(self) -> MicroBatchSlot:
        """Allocate the arrays of a micro-batch that has no backward pass: the activations of one layer."""

    def allocate_scratch(self) -> Any:
        """Allocate the scratch of one backward pass: a named tuple of arrays."""

    @property
    def member_scratch_bytes(self) -> int:
        """Size of the scratch of `allocate_member_scratch`."""

    def allocate_member_scratch(self) -> Mapping[str, Any]:
        """Allocate the fields of `allocate_scratch` that every member of a team has for itself."""


DROPOUT_KEY_BYTES = 8
"""Bytes of the key of a slot's dropout."""


def allocate_token_ids(rows: int) -> tuple[TokenIds, TokenIds]:
    """Allocate the token ids and the targets of a slot, int32 (rows,) each."""
    arena = Arena({"ids": (rows,), "targets": (rows,)}, np.int32)
    return arena["ids"], arena["targets"]


def token_ids_bytes(rows: int) -> int:
    """Return the bytes of the token ids and the targets of a slot."""
    return 2 * rows * np.dtype(np.int32).itemsize


def allocate_starts(rows: int, *, borders: bool) -> DocumentStarts:
    """Allocate the borders of a slot's documents: every sequence is one document until a source writes others."""
    return aligned_zeros(rows if borders else 0, np.int32)


def starts_bytes(rows: int, *, borders: bool) -> int:
    """Return the bytes of the borders of a slot's documents."""
    return rows * np.dtype(np.int32).itemsize if borders else 0


def logits_chunk_rows(vocabulary: int, rows: int, chunk_bytes: int) -> int:
    """Return how many of a micro-batch's rows the output projection processes at a time.

    The rows are divided into equal chunks (the last may be smaller), as few as possible, such that the float32 logits
    of a chunk fit in `chunk_bytes`.
    """
    most = max(chunk_bytes // (4 * vocabulary), 1)
    chunks = -(-rows // most)
    return -(-rows // chunks)


def arrays_bytes(arrays: Iterable[Any]) -> int:
    """Return the bytes of the arrays in a tuple, or in a tuple of tuples; an array that appears twice counts once."""
    found: dict[int, int] = {}
    for item in arrays:
        if isinstance(item, tuple):
            found[id(item)] = arrays_bytes(item)
        else:
            found[id(item)] = item.nbytes
    return sum(found.values())
