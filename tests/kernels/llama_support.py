"""Support of the tests of Llama kernels: the variants, and a model's tensors by its sizes."""

from dataclasses import dataclass, replace

import numpy as np

from tests.kernels.support import adapter_shapes, lora_constants, with_ignored, without_elements
from tests.reference import Ids, Llama3Scaling, LlamaSizes, LoraSizes, Rotary, rotary_tables
from threadloom.kernels.common.tensors import NO_RATES, DropoutRates, HeadCounts, LlamaConstants, LlamaWeights

MATRICES = {
    "head": "head",
    "qkv": "qkv_weight",
    "attn_proj": "attn_proj_weight",
    "gate_up": "gate_up_weight",
    "down": "down_weight",
}
"""Field of the packed weights → matrix."""


LLAMA_LINEAR = ("qkv", "attn_proj", "gate_up", "down")
"""The linear layers that can have adapters, in the order of the kernels' constants."""


@dataclass(frozen=True)
class LlamaCase:
    """A variant of the architecture with its sizes, and those of a micro-batch."""

    sizes: LlamaSizes
    sequences: int
    tokens: int
    context: int
    rates: DropoutRates = NO_RATES

    @property
    def rows(self) -> int:
        """Tokens of the micro-batch."""
        return self.sequences * self.tokens

    @property
    def constants(self) -> LlamaConstants:
        """Constants of the model kernels, from the tables of the reference."""
        s = self.sizes
        cos, sin = (table.astype(np.float32) for table in rotary_tables(s.rotary, s.head_size, self.context))
        rotary = np.array([layer not in s.layers_without_rotary for layer in range(s.layers)])
        lora = lora_constants(s.lora, LLAMA_LINEAR)
        return LlamaConstants(HeadCounts(s.heads, s.kv_heads), s.epsilon, cos, sin, rotary, lora, dropout=self.rates)

    @property
    def attn_width(self) -> int:
        """Columns of the heads' outputs, H D."""
        return self.sizes.heads * self.sizes.head_size

    @property
    def qkv_width(self) -> int:
        """Columns of queries, keys and values, (H + 2K) D."""
        return (self.sizes.heads + 2 * self.sizes.kv_heads) * self.sizes.head_size

    @property
    def raw_width(self) -> int:
        """Columns of queries and keys that are kept before their norm, (H + K) D; 0 without one."""
        s = self.sizes
        return (s.heads + s.kv_heads) * s.head_size if s.qk_norm else 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a field of `LlamaWeights`: 0 columns if the model does not have the tensor."""
        shapes = self.sizes.shapes()
        if name == "head":
            return shapes["wte"]
        if name.endswith(("_a", "_b")):
            return adapter_shapes(self.sizes.lora, name[:-2], shapes)[name]
        return shapes.get(name, (self.sizes.layers, 0))

    def ids(self, rng: np.random.Generator) -> Ids:
        """Return random token ids (B, T)."""
        return rng.integers(0, self.sizes.vocabulary, (self.sequences, self.tokens))

    def targets(self, rng: np.random.Generator) -> Ids:
        """Return random targets (B, T), some of them ignored."""
        return with_ignored(self.ids(rng))


def gradient_shapes(case: LlamaCase, frozen: frozenset[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the gradients; those of `frozen` tensors have no elements."""
    shapes = {name: case.shape(name) for name in LlamaWeights._fields}
    return {name: without_elements(name, shape) if name in frozen else shape for name, shape in shapes.items()}


LLAMA3 = Rotary(theta=500.0, llama3=Llama3Scaling(factor=4.0, low_factor=1.0, high_factor=4.0, context=16))
"""Frequencies on both sides of the blend and within it, for heads of 10 and more."""

CASES = {
    "grouped heads": LlamaCase(
        LlamaSizes(
            vocabulary=37, layers=3, channels=27, heads=4, kv_heads=2, head_size=10, mlp_width=33, rotary=LLAMA3,
        ),
        sequences=3, tokens=11, context=13,
    ),
    "all biases, tied": LlamaCase(
        LlamaSizes(
            vocabulary=131, layers=2, channels=17, heads=3, kv_heads=1, head_size=6, mlp_width=21, epsilon=1e-5,
            tied=True, qkv_bias=True, attn_proj_bias=True, mlp_bias=True,
        ),
        sequences=1, tokens=9, context=9,
    ),
    "norms of heads, partial rotary": LlamaCase(
        LlamaSizes(
            vocabulary=41, layers=2, channels=24, heads=2, kv_heads=2, head_size=14, mlp_width=19, qk_norm=True,
            rotary=Rotary(dimensions=6, linear_factor=2.0),
        ),
        sequences=2, tokens=7, context=8,
    ),
    "layers without rotary, biases of q, k, v": LlamaCase(
        LlamaSizes(
            vocabulary=23, layers=3, channels=30, heads=6, kv_heads=3, head_size=8, mlp_width=50, qkv_bias=True,
            layers_without_rotary=frozenset({1}), tied=True,
        ),
        sequences=2, tokens=5, context=6,
    ),
    "one row": LlamaCase(
        LlamaSizes(vocabulary=7, layers=1, channels=9, heads=1, kv_heads=1, head_size=2, mlp_width=5),
        sequences=1, tokens=1, context=1,
    ),
    "more than a tile of queries": LlamaCase(
        LlamaSizes(
            vocabulary=65, layers=1, channels=48, heads=4, kv_heads=1, head_size=20, mlp_width=72, qk_norm=True,
            qkv_bias=True, mlp_bias=True,
        ),
        sequences=2, tokens=139, context=150,
    ),
}  # fmt: skip
"""Variants and sizes at which the models of every number format are compared with the reference."""

LORA_CASES = {
    "all linear": replace(
        CASES["grouped heads"],
        sizes=replace(
            CASES["grouped heads"].sizes,
            lora=LoraSizes(
                rank=3, scale=2.5,
                columns={
                    "qkv": ((0, 40), (40, 60), (60, 80)), "attn_proj": ((0, 27),), "gate_up": ((0, 33), (33, 66)),
                    "down": ((0, 27),),
                },
            ),
        ),
    ),
    "queries and values, down": replace(
        CASES["all biases, tied"],
        sizes=replace(
            CASES["all biases, tied"].sizes,
            lora=LoraSizes(rank=5, scale=0.75, columns={"qkv": ((0, 18), (24, 30)), "down": ((0, 17),)}),
        ),
    ),
    "up, rank 16, more than a tile of queries": replace(
        CASES["more than a tile of queries"],
        sizes=replace(
            CASES["more than a tile of queries"].sizes,
            lora=LoraSizes(rank=16, scale=4.0, columns={"gate_up": ((72, 144),), "attn_proj": ((0, 48),)}),
        ),
    ),
}  # fmt: skip
"""Variants with adapters."""
