"""The protocol of an architecture's arrays and kernels in 16 bits."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from threadloom.kernels import Floats, TokenIds
from threadloom.kernels.common import DocumentStarts, ModelKernels, TeamKernels
from threadloom.stages.models import Geometry, Shape

ArraySpec = tuple[Shape, np.dtype[Any]]
"""Shape and dtype of an array."""
ArraySpecs = dict[str, ArraySpec]
"""Name → shape and dtype."""

FLOAT = np.dtype(np.float32)
GeometryT = TypeVar("GeometryT", bound=Geometry, contravariant=True)


class Bits16Layout(Protocol[GeometryT]):
    """One architecture's arrays and kernels in both 16-bit formats.

    `storage` is the integer dtype of a format: uint16 for bfloat16, int16 for float16.
    """

    weights: type[Any]
    """The pair of the float32 master and its packed weights."""
    packed: type[Any]
    """The tuple of the packed weights; a field with the suffix ``_t`` is the packed transpose."""
    shared_packed: Mapping[str, str]
    """Field of `packed` → the field whose array it is in a model that has no other for it."""
    repacked: frozenset[str]
    """Fields of `packed` whose transposes the backward pass can make, if they are not held."""
    activations: type[Any]
    """The tuple of the arrays that the forward pass keeps."""
    scratch: type[Any]
    """The tuple of the scratch of the backward pass."""
    kernels: ModelKernels[Any, Any, Any, Any, Any]
    """The model kernels, which serve both formats."""
    team: TeamKernels[Any, Any, Any, Any, Any]
    """Those of a team of threads, in bfloat16 alone, for the same models as in float32."""

    def packed_fields(self, geometry: GeometryT) -> dict[str, str]:
        """Return the matrices with packed weights → field of `packed`, in the order of the table of shapes.

        Those of the layers are stacked (L, inputs, outputs); others are (V, C). Those of adapters are included, also if
        the model has none. A matrix without a field for the packed transpose is only looked up.
        """

    def flat_packed(self, geometry: GeometryT) -> dict[str, int]:
        """Return tensors that are flat arrays of packed matrices → the words of each, and of its packed transposes.

        Their names are fields of `packed`. They are no matrices of `packed_fields`; `pack_flat` packs them.
        """

    def pack_flat(self, geometry: GeometryT, master: Any, packed: Any) -> None:
        """Round the tensors of `flat_packed` to bfloat16 and pack them."""

    def activation_specs(
        self, geometry: GeometryT, sequences: int, storage: np.dtype[Any], *, small: bool = False
    ) -> ArraySpecs:
        """Return shape and dtype of every field of `activations` but ``dropout_key`` and ``thread``.

        With `small` the largest activation, of the MLP, has one layer: the backward pass recomputes the others.
        """

    def scratch_specs(self, geometry: GeometryT, sequences: int, storage: np.dtype[Any]) -> ArraySpecs:
        """Return shape and dtype of every field of `scratch` but ``thread`` and the logits and their gradients."""

    def embed(self, weights: Any, ids: TokenIds, context: int, starts: DocumentStarts, out: Floats) -> None:
        """Write the input embeddings of the tokens `ids` (R,), sequences of `context` tokens, to `out` (R, C).

        `weights` is a pair of the type `weights`.
        """
