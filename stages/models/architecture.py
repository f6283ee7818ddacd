"""The protocol of an architecture: everything about its tensors that other rooms need to know.

The table of `parameter_shapes` drives the arenas (weights, gradients, AdamW's moments), the initialisation, the
optimizer's weight decay and the checkpoint, so all of them agree on the tensors of a model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.growth import TensorGrowth
from threadloom.stages.models.tensor_part import TensorPart

Floats = NDArray[np.float32]
GeometryT = TypeVar("GeometryT", bound=Geometry, contravariant=True)


class UnsupportedModelError(ValueError):
    """A model in Hugging Face's layout that no architecture here computes."""

    def __init__(self, expected: str, got: str, cause: str, hint: str | None = None) -> None:
        self.expected, self.got, self.cause, self.hint = expected, got, cause, hint
        super().__init__(f"expected {expected}, got {got} ({cause})")


@dataclass(frozen=True)
class InitialValue:
    """The distribution that a tensor is initialised from: normal, uniform, or a constant."""

    deviation: float = 0.0
    """Standard deviation of a normal distribution around 0; 0 for another one."""
    constant: float = 0.0
    bound: float = 0.0
    """Uniform between -`bound` and `bound`; 0 for another distribution."""


class HuggingFaceLayout(Protocol[GeometryT]):
    """The names of an architecture's tensors, and its configuration, in Hugging Face's layout.

    Each of its tensors is a part of a tensor of `parameter_shapes`, which stacks all layers along the first axis.
    """

    model_types: tuple[str, ...]
    """Values of `model_type` in config.json."""
    token_embedding: str
    """Name of the token embedding in the layout."""
    output_projection: str
    """Name of the output projection; it is not among the `parts` of a model that ties it to the token embedding."""
    default_targets: tuple[str, ...]
    """The linear layers with an adapter (LoRA) if none are named: those that PEFT chooses."""
    ignored: re.Pattern[str]
    """Unprefixed names of tensors in files of older versions that hold constants."""

    def parts(self, geometry: GeometryT) -> dict[str, TensorPart]:
        """Return the name of each tensor in a file → the part of a tensor of `parameter_shapes` that it is."""

    def config(
        self, geometry: GeometryT, end_of_text: int | None, came_in: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the content of config.json; `end_of_text` is the id of the token that begins and ends texts.

        `came_in` is the config.json of a model of these sizes, of which the keys are kept that say nothing else; the
        context may differ.
        """

    def geometry(self, config: bytes) -> Geometry:
        """Return the geometry that a config.json describes.

        Raises UnsupportedModelError for a variant that the kernels do not compute, msgspec.DecodeError for missing
        keys and values of the wrong type.
        """


class Architecture(Protocol[GeometryT]):
    """One model architecture; an instance of each is in `ARCHITECTURES`."""

    name: str
    """Key in `ARCHITECTURES`, and `Geometry.architecture`."""
    geometry: type[Geometry]
    """The class of the architecture's sizes."""
    matrices: tuple[str, ...]
    """The tensors that weight decay applies to; those that a model has lead its table of shapes."""
    unstacked: frozenset[str]
    """The tensors that a model has once, and not once per layer along the first axis."""
    huggingface: HuggingFaceLayout[Any]

    def parameter_shapes(self, geometry: GeometryT) -> dict[str, Shape]:
        """Return name → shape of every tensor, in the order of the arena: `matrices` first."""

    def gathered(self, geometry: GeometryT) -> tuple[str, ...]:
        """Return the tensors whose rows are looked up and that no matrix multiplication reads."""

    def tied(self, geometry: GeometryT) -> dict[str, str]:
        """Return field of the tensors' tuple → the tensor that is the same array, for fields that share one."""

    def grown(self, geometry: GeometryT, factor: int, sources: Sequence[int | None]) -> Geometry:
        """Return the sizes with `factor` times the channels and heads, and a layer for each of `sources`.

        `sources` has the layer of the model that each layer comes from, None for an inserted one.
        """

    def growth(self, geometry: GeometryT) -> dict[str, TensorGrowth]:
        """Return name → rule by which the tensor of a model of these sizes grows with the width."""

    def initial_values(self, geometry: GeometryT, *, residual_scaling: bool) -> dict[str, InitialValue]:
        """Return name → initial distribution of every tensor.

        With `residual_scaling`, the projections that write to the residual stream start smaller in deep models.
        """
