"""Support of the kernel tests: guarded arrays filled with NaN, and a model's tensors by its sizes.

Every output is a view into a larger array: a write outside of it changes a guard value, and an element that the kernel
failed to write is still NaN.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

from tests import reference
from tests.reference import Array, Ids, LoraSizes, Tensors
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.team import Team, make_team
from threadloom.kernels.common.tensors import (
    ATTENTION_TILE,
    NO_RATES,
    DropoutRates,
    Gpt2Constants,
    HeadCounts,
    LoraConstants,
    Weights,
)
from threadloom.kernels.compiling.arrays import Floats, TokenIds
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.float32.decode import DecodeScratch
from threadloom.kernels.float32.one_token import KVCache
from threadloom.kernels.float32.tensors import Activations, Scratch
from threadloom.kernels.matmul.operands import Op

random_shapes = settings(max_examples=40 if JIT_ENABLED else 5, deadline=None, derandomize=True)
"""Hypothesis settings for shapes: the same ones in every run, without a deadline (the first call compiles)."""


def shapes_with_fixtures(examples: int) -> settings:
    """Return `random_shapes` with another number of examples, for tests whose fixtures serve all examples."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(random_shapes, max_examples=examples, suppress_health_check=checks)


def head_counts(most: int) -> SearchStrategy[HeadCounts]:
    """Return the heads of attention: up to `most` of keys and values, each with a group of up to five query heads."""
    return st.builds(lambda k, group: HeadCounts(k * group, k), st.integers(1, most), st.sampled_from((1, 2, 3, 5)))


@dataclass(frozen=True)
class GemmCase:
    """Sizes, transpositions and factors of ``alpha * op_a(a) @ op_b(b) + beta * out``."""

    rows: int
    columns: int
    inner: int
    op_a: Op = Op.N
    op_b: Op = Op.N
    alpha: float = 1.0
    beta: float = 0.0


Case = TypeVar("Case", bound=GemmCase)


def gemm_cases(
    case: type[Case], largest: tuple[int, int], inner: tuple[int, tuple[int, int]], **others: SearchStrategy[Any]
) -> SearchStrategy[Case]:
    """Return cases with at most `largest` rows and columns, and both operands transposed or not.

    `inner`: the largest of the small inner sizes, which begin at 1, and the range of the large ones.
    """
    rows, columns = (st.integers(1, size) for size in largest)
    sizes = {"rows": rows, "columns": columns, "inner": st.one_of(st.integers(1, inner[0]), st.integers(*inner[1]))}
    ops = {"op_a": st.sampled_from(Op), "op_b": st.sampled_from(Op)}
    return st.builds(case, **sizes, **ops, **others)


def run_without_compiler(program: str) -> None:
    """Run a program with the kernels as plain Python: an index out of bounds, hidden by the compiler, raises there."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


GUARD = 32
GUARD_VALUE = 77.0


@dataclass
class Guarded:
    """Allocator of float32 arrays with guard values on both sides, and check of the guards."""

    _guards: list[Floats] = field(default_factory=list)

    def empty(self, *shape: int) -> Floats:
        """Return an array filled with NaN."""
        size = int(np.prod(shape, dtype=np.int64))
        buffer = np.full(size + 2 * GUARD, GUARD_VALUE, np.float32)
        self._guards += [buffer[:GUARD], buffer[GUARD + size :]]
        view = buffer[GUARD : GUARD + size].reshape(shape)
        view[...] = np.nan
        return view

    def empty_columns(self, rows: int, columns: int) -> Floats:
        """Return a matrix filled with NaN, with guard values on both sides of every row."""
        wide = self.empty(rows, columns + 5)
        wide[...] = GUARD_VALUE
        self._guards += [wide[:, :3], wide[:, 3 + columns :]]
        view = wide[:, 3 : 3 + columns]
        view[...] = np.nan
        return view

    def copy(self, values: NDArray[np.floating]) -> Floats:
        """Return an array with these values."""
        view = self.empty(*values.shape)
        view[...] = values
        return view

    def check(self) -> None:
        """Fail if anything was written outside of an array allocated here."""
        for guard in self._guards:
            assert (guard == GUARD_VALUE).all(), "written outside of an output"


DROPOUT_KEY = 0x123456789ABCDEF1
"""Key of the dropout of a micro-batch."""

GPT2_LINEAR = ("qkv", "attn_proj", "fc", "mlp_proj")
"""The linear layers of GPT-2 that can have adapters, in the order of the kernels' constants."""


def lora_ranks(lora: LoraSizes | None, name: str) -> int:
    """Return the ranks of the adapters of a linear layer together, 0 without."""
    return lora.ranks(name) if lora else 0


def lora_constants(lora: LoraSizes | None, names: tuple[str, ...]) -> LoraConstants:
    """Return the numbers of the adapters of linear layers."""
    columns = lora.columns if lora else {}
    arrays = [np.array(columns.get(name, ()), np.int64).reshape(-1, 2) for name in names]
    return LoraConstants(lora.scale if lora else 0.0, lora.dropout if lora else 0.0, *arrays)


def clear_outside_blocks(grads: Any, lora: LoraSizes | None) -> None:
    """Write zeros to the elements of adapters' gradients that no kernel writes, as a lane has them from the start."""
    for name in lora.columns if lora else ():
        gradient = getattr(grads, f"{name}_b")
        if gradient.size:
            assert lora is not None
            gradient[:, lora.blocks(name, gradient.shape[2]) == 0] = 0.0


def adapter_shapes(
    lora: LoraSizes | None, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the adapters of a linear layer; (L, 0, 0) without."""
    layers, inputs, outputs = shapes[f"{name}_weight"]
    ranks = lora_ranks(lora, name)
    widths = {"a": inputs, "b": outputs} if ranks else {"a": 0, "b": 0}
    return {f"{name}_{key}": (layers, ranks, width) for key, width in widths.items()}


@dataclass(frozen=True)
class Sizes:
    """Geometry of a model and of a micro-batch."""

    vocabulary: int
    context: int
    layers: int
    heads: int
    channels: int
    sequences: int
    tokens: int
    lora: LoraSizes | None = None
    rates: DropoutRates = NO_RATES

    @property
    def rows(self) -> int:
        """Tokens of the micro-batch."""
        return self.sequences * self.tokens

    @property
    def constants(self) -> Gpt2Constants:
        """Constants of the model kernels."""
        return Gpt2Constants(self.heads, lora_constants(self.lora, GPT2_LINEAR), dropout=self.rates)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every field of `Weights`."""
        shapes = reference.tensor_shapes(self.vocabulary, self.context, self.layers, self.channels)
        adapters = [adapter_shapes(self.lora, name, shapes) for name in GPT2_LINEAR]
        return {name: shape for found in (shapes, *adapters) for name, shape in found.items()}

    def tensors(self, rng: np.random.Generator) -> Tensors:
        """Return random weights for the reference."""
        tensors = reference.random_tensors(rng, self.vocabulary, self.context, self.layers, self.channels)
        return tensors | (self.lora.random_tensors(rng, self.shapes(), spread=0.3) if self.lora else {})

    def ids(self, rng: np.random.Generator) -> Ids:
        """Return random token ids (B, T)."""
        return rng.integers(0, self.vocabulary, (self.sequences, self.tokens))

    def targets(self, rng: np.random.Generator) -> Ids:
        """Return random targets (B, T), some of them ignored."""
        return with_ignored(self.ids(rng))


MODEL_SIZES = {
    "odd": Sizes(vocabulary=37, context=13, layers=3, heads=3, channels=27, sequences=3, tokens=11),
    "one token": Sizes(vocabulary=11, context=5, layers=2, heads=2, channels=22, sequences=3, tokens=1),
    "one sequence": Sizes(vocabulary=131, context=9, layers=2, heads=1, channels=17, sequences=1, tokens=9),
    "one row": Sizes(vocabulary=7, context=1, layers=1, heads=1, channels=9, sequences=1, tokens=1),
    "more than a tile of queries": Sizes(
        vocabulary=65, context=150, layers=1, heads=2, channels=96, sequences=2, tokens=139
    ),
    "as people train": Sizes(vocabulary=65, context=64, layers=2, heads=4, channels=64, sequences=2, tokens=64),
}
"""Sizes at which the models of every number format are compared with the reference."""

LORA_SIZES = {
    "all linear": replace(
        MODEL_SIZES["odd"],
        lora=LoraSizes(3, 2.5, {"qkv": ((0, 81),), "attn_proj": ((0, 27),), "fc": ((0, 108),), "mlp_proj": ((0, 27),)}),
    ),
    "queries, keys and values": replace(MODEL_SIZES["as people train"], lora=LoraSizes(16, 0.5, {"qkv": ((0, 192),)})),
}
"""Sizes of models with adapters."""


def without_elements(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the gradient of a frozen tensor: a tensor of the layers keeps its first axis."""
    of_model = name.startswith(("wte", "wpe", "head", "lnf", "normf"))
    return (0 if of_model else shape[0], *(0,) * (len(shape) - 1))


def gradient_shapes(sizes: Sizes, frozen: frozenset[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the gradients; those of `frozen` tensors have no elements."""
    return {n: without_elements(n, shape) if n in frozen else shape for n, shape in sizes.shapes().items()}


def empty_weights(sizes: Sizes, memory: Guarded, frozen: frozenset[str] = frozenset()) -> Weights:
    """Return the gradients of a model, filled with NaN."""
    return Weights(**{name: memory.empty(*shape) for name, shape in gradient_shapes(sizes, frozen).items()})


def make_weights(tensors: Tensors, memory: Guarded) -> Weights:
    """Return a float32 copy of the reference's tensors, without adapters if it has none."""
    nothing = np.zeros((len(tensors["qkv_weight"]), 0, 0))
    return Weights(**{name: memory.copy(tensors.get(name, nothing)) for name in Weights._fields})


def make_activations(sizes: Sizes, memory: Guarded) -> Activations:
    """Return the outputs and scratch of forward, filled with NaN."""
    n, r, c = sizes.layers, sizes.rows, sizes.channels
    return Activations(
        x=memory.empty(n + 1, r, c),
        ln1_mean=memory.empty(n, r),
        ln1_rstd=memory.empty(n, r),
        qkv=memory.empty(n, r, 3 * c),
        attn=memory.empty(n, r, c),
        attn_lse=memory.empty(n, sizes.sequences, sizes.heads, sizes.tokens),
        x_mid=memory.empty(n, r, c),
        ln2_mean=memory.empty(n, r),
        ln2_rstd=memory.empty(n, r),
        fc=memory.empty(n, r, 4 * c),
        **{f"{name}_xa": memory.empty(n, r, lora_ranks(sizes.lora, name)) for name in GPT2_LINEAR},
        h=memory.empty(r, c),
        gelu=memory.empty(r, 4 * c),
        dropout_key=np.full(1, DROPOUT_KEY, np.uint64),
        starts=NO_BORDERS,
        dropped=memory.empty(r * 4 * c if sizes.lora and sizes.lora.dropout else 0),
        scores=memory.empty(ATTENTION_TILE, sizes.context),
    )


def make_scratch(sizes: Sizes, memory: Guarded, logits_rows: int = 3) -> Scratch:
    """Return the scratch of backward, filled with NaN."""
    r, c = sizes.rows, sizes.channels
    return Scratch(
        dx=memory.empty(r, c),
        dh=memory.empty(r, c),
        d_attn=memory.empty(r, c),
        d_qkv=memory.empty(r, 3 * c),
        d_fc=memory.empty(r, 4 * c),
        gelu=memory.empty(r, 4 * c),
        h=memory.empty(r, c),
        scores=memory.empty(2, ATTENTION_TILE, sizes.context),
        logits=memory.empty(logits_rows, sizes.vocabulary),
        lnf_mean=memory.empty(r),
        lnf_rstd=memory.empty(r),
        d_xa=memory.empty(r * max(lora_ranks(sizes.lora, name) for name in GPT2_LINEAR)),
        dropped=memory.empty(r * 4 * c if sizes.lora and sizes.lora.dropout else 0),
    )


def make_cache(sizes: Sizes, memory: Guarded) -> KVCache:
    """Return the keys and values of one sequence, filled with NaN."""
    shape = (sizes.layers, sizes.context, sizes.channels)
    return KVCache(keys=memory.empty(*shape), values=memory.empty(*shape))


def make_decode_scratch(sizes: Sizes, memory: Guarded) -> DecodeScratch:
    """Return the scratch of one step of generation, filled with NaN."""
    c = sizes.channels
    return DecodeScratch(
        x=memory.empty(c),
        qkv=memory.empty(3 * c),
        attn=memory.empty(c),
        fc=memory.empty(4 * c),
        h=memory.empty(c),
        gelu=memory.empty(4 * c),
        scores=memory.empty(sizes.context),
    )


def alone() -> Team:
    """Return the place of the only member of a team, for a step of generation."""
    return make_team(1, 0, np.zeros(1, np.int64))[0]


def flat_ids(ids: Ids) -> TokenIds:
    """Return token ids as kernels take them: int32, (R,)."""
    return np.ascontiguousarray(ids.reshape(-1), np.int32)


def with_ignored(targets: Ids) -> Ids:
    """Return targets of which every fourth, from the second on, does not count."""
    rows = targets.copy().reshape(-1)
    rows[1::4] = -1
    return rows.reshape(targets.shape)


def float32_numbers(rng: np.random.Generator, *shape: int) -> Array:
    """Return normal random numbers in float64 that are exact in float32."""
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)
