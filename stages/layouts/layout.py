"""The protocol of an architecture's arrays and kernels in float32, and of the parts that no number format changes."""

from typing import Any, Protocol, TypeVar

from threadloom.kernels import Floats, TokenIds, Weights
from threadloom.kernels.common import DocumentStarts, HeadCounts, LlamaWeights, ModelKernels, TeamKernels
from threadloom.kernels.float32 import DecodeKernels
from threadloom.stages.models import Geometry, Shape

ModelWeights = Weights | LlamaWeights
"""Parameters of a model of any architecture, or arrays of the same shapes."""

GeometryT = TypeVar("GeometryT", bound=Geometry, contravariant=True)


class Layout(Protocol[GeometryT]):
    """One architecture's arrays and kernels; an instance of each is in `LAYOUTS`."""

    weights: type[Any]
    """The tuple of the parameters. A field that a model lacks is an array without elements."""
    activations: type[Any]
    """The tuple of the arrays that the forward pass keeps."""
    scratch: type[Any]
    """The tuple of the scratch of the backward pass."""
    of_head: frozenset[str]
    """Fields whose gradients `head_backward` computes completely, so that no other kernel is needed for them alone."""
    softmax_rows: int
    """Rows of the array ``logits`` that are scratch of a head's softmax, after those of a chunk."""
    kernels: ModelKernels[Any, Any, Any, Any, Any]
    """The model kernels in float32."""
    team: TeamKernels[Any, Any, Any, Any, Any]
    """Those of a team of threads, for models without factors of the token embedding, adapters, and norms of heads."""
    decode: DecodeKernels[Any, Any, Any]
    """The kernels of generation, in float32."""
    decode_matrices: tuple[str, ...]
    """The fields that generation may read in another number format: all matrices of size."""
    decode_scratch: type[Any]
    """The tuple of the scratch of generation."""
    decode_shared: frozenset[str]
    """Its fields that the members of a team share; each has the others for itself."""

    def constants(self, geometry: GeometryT) -> Any:
        """Return the numbers that are not trained, as the model kernels of every number format take them."""

    def activation_shapes(self, geometry: GeometryT, sequences: int) -> dict[str, Shape]:
        """Return the shape of every field of `activations` for micro-batches of `sequences`."""

    def scratch_shapes(self, geometry: GeometryT, sequences: int) -> dict[str, Shape]:
        """Return the shape of every field of `scratch` but ``logits``, which every architecture has."""

    def decode_scratch_shapes(self, geometry: GeometryT) -> dict[str, Shape]:
        """Return the shape of every field of `decode_scratch`."""

    def layer_constants(self, constants: Any, layer: int) -> Any:
        """Return the constants of a model that consists of one of the layers."""

    def embed(self, weights: Any, ids: TokenIds, context: int, starts: DocumentStarts, out: Floats) -> None:
        """Write the input embeddings of the tokens `ids` (R,), sequences of `context` tokens, to `out` (R, C).

        `starts` are the borders of documents, from which positions count: `kernels.common.documents`.
        """

    def scatter_input_gradient(
        self, ids: TokenIds, dx: Floats, context: int, starts: DocumentStarts, gradients: Any, *, accumulate: bool
    ) -> None:
        """Add the gradient of the input embeddings (R, C) to those of their tensors, in the order of the rows.

        All other gradients of the micro-batch have been written to `gradients`, or added to them if `accumulate`.
        """


def head_counts(geometry: Geometry) -> HeadCounts:
    """Return the numbers of heads of queries, and of keys and values."""
    return HeadCounts(geometry.heads, geometry.key_value_width * geometry.heads // geometry.attn_width)
