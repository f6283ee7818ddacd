"""Sizes, names, shapes and random values of the tensors of a model of the Llama family."""

from dataclasses import dataclass, field

import numpy as np

from tests.reference.lora import LoraSizes
from tests.reference.rotary import Rotary
from tests.reference.tensors import Tensors, random_of_shapes

DECAYED = ("wte", "head", "qkv_weight", "attn_proj_weight", "gate_up_weight", "down_weight")
GAINS = ("norm1_weight", "norm2_weight", "normf_weight", "q_norm_weight", "k_norm_weight")
OF_MODEL = ("wte", "head", "normf_weight")
"""Tensors of which there is one; of all others there is one per layer."""


@dataclass(frozen=True)
class LlamaSizes:
    """The sizes and variants of a model."""

    vocabulary: int
    layers: int
    channels: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    epsilon: float = 1e-6
    rotary: Rotary = field(default_factory=Rotary)
    layers_without_rotary: frozenset[int] = frozenset()
    tied: bool = False
    qkv_bias: bool = False
    attn_proj_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    lora: LoraSizes | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the model has."""
        n, c, attn, hidden = self.layers, self.channels, self.heads * self.head_size, self.mlp_width
        qkv = attn + 2 * self.kv_heads * self.head_size
        shapes: dict[str, tuple[int, ...]] = {"wte": (self.vocabulary, c)}
        if not self.tied:
            shapes["head"] = (self.vocabulary, c)
        for name, inputs, outputs, biased in (
            ("qkv", c, qkv, self.qkv_bias),
            ("attn_proj", attn, c, self.attn_proj_bias),
            ("gate_up", c, 2 * hidden, self.mlp_bias),
            ("down", hidden, c, self.mlp_bias),
        ):
            shapes[f"{name}_weight"] = (n, inputs, outputs)
            if biased:
                shapes[f"{name}_bias"] = (n, outputs)
        shapes |= {"norm1_weight": (n, c), "norm2_weight": (n, c), "normf_weight": (c,)}
        if self.qk_norm:
            shapes |= {"q_norm_weight": (n, self.head_size), "k_norm_weight": (n, self.head_size)}
        return shapes

    def random_tensors(self, rng: np.random.Generator, spread: float = 0.3) -> Tensors:
        """Return weights, those of adapters too, in which no tensor is zero or one, in float32 numbers."""
        tensors = random_of_shapes(rng, self.shapes(), GAINS, spread)
        return tensors | (self.lora.random_tensors(rng, self.shapes(), spread) if self.lora else {})
