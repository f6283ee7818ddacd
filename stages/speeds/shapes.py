"""Shapes of the float32 products of a model, cut to what can be measured in a second or two.

The speed of a variant follows from the edges of its tiles and from the caches that its operands fit into. Large sizes
are therefore reduced by whole steps: their remainders stay, and the operands remain larger than the caches.
"""

from dataclasses import replace

import msgspec

from threadloom.kernels.matmul import WIDE
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.models import parameter_shapes

MOST_ROWS, ROWS_STEP = 256, 64
MOST_CHANNELS, CHANNELS_STEP = 1536, 512
MOST_VOCABULARY, VOCABULARY_STEP = 8192, 512


class ProductShapes(msgspec.Struct, frozen=True):
    """The rows of a micro-batch, inputs and outputs of its linear layers, and the width of wide logits."""

    rows: int
    layers: tuple[tuple[int, int], ...]
    vocabulary: tuple[int, int] | None = None
    """Inputs and outputs of the projection to the logits; None if it is not of the kind VOCABULARY."""

    @property
    def name(self) -> str:
        """The name under which its figures are kept."""
        layers = ", ".join(f"{inputs} x {outputs}" for inputs, outputs in self.layers)
        wide = f"; vocabulary {self.vocabulary[0]} x {self.vocabulary[1]}" if self.vocabulary else ""
        return f"{self.rows} rows; layers {layers}{wide}"


STANDARD_SHAPES = ProductShapes(256, ((384, 1536),), (384, 8192))
"""A micro-batch through the first half of an MLP, and to the logits: what the doctor measures."""


def product_shapes(config: ResolvedConfig) -> ProductShapes:
    """Return the shapes of the products of a run; adapters, which are small, are left out."""
    geometry = replace(config.geometry(), lora=None)
    matrices = [shape[1:] for shape in parameter_shapes(geometry).values() if len(shape) == 3]
    layers = dict.fromkeys(
        tuple(_reduced(size, MOST_CHANNELS, CHANNELS_STEP) for size in matrix) for matrix in matrices
    )
    wide = geometry.vocabulary >= WIDE
    return ProductShapes(
        _reduced(config.micro_batch * config.model.context, MOST_ROWS, ROWS_STEP),
        tuple((inputs, outputs) for inputs, outputs in layers),
        (
            _reduced(geometry.channels, MOST_CHANNELS, CHANNELS_STEP),
            _reduced(geometry.vocabulary, MOST_VOCABULARY, VOCABULARY_STEP),
        )
        if wide
        else None,
    )


def _reduced(size: int, most: int, step: int) -> int:
    """Return `size` less as many steps as bring it to `most` or below."""
    return size - step * max(0, -(-(size - most) // step))
