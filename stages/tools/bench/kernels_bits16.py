"""The kernels of an update in 16 bits that every architecture has, each with its work.

One table serves both formats: `kernels.bits16.linear` selects the GEMM by the type of the packed weights. Bytes are
counted as the tensors are stored: 2 per element between layers and in packed weights, 4 in the residual stream, its
gradient, the logits and the gradients of weights.
"""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from threadloom.kernels import AttentionActivations, Floats
from threadloom.kernels.bits16 import (
    NormalizedRows,
    PackedPair,
    SecondProduct,
    cross_entropy_backward,
    linear_backward_input,
    linear_backward_weight,
    logits_backward_input,
    logits_forward,
)
from threadloom.kernels.matmul import transpose_bf16
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.layouts.bits16 import bits16_layout_of
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD, HEAD, KernelBench
from threadloom.stages.tools.bench.kernel_case import KernelCase, restorer
from threadloom.stages.tools.bench.roofline import FLOAT, SHORT, KernelWork, gemm_work, total


class LinearArrays(NamedTuple):
    """The arrays of the backward pass of a linear layer, in 16 bits but for the result of one that follows a norm."""

    x: Any  # (R, I) input, or the normalised rows from which it is computed
    d_out: Any  # (R, O)
    dx: Any  # (R, I)


class Bits16Bench(KernelBench):
    """The kernels in bfloat16 or float16."""

    EMBEDDING_BYTES = SHORT

    def __init__(self, config: ResolvedConfig) -> None:
        """Allocate the memory; the caller keeps `gemm_settings(config)` active here and during the calls."""
        super().__init__(config)
        self.layout16 = bits16_layout_of(self.geometry)
        self.packed: Any = self.bank.packed
        self.weights16 = self.layout16.weights(self.weights, self.packed)
        self.acts: Any = self.slot.activations
        self.s: Any = self.scratch
        a, s = self.acts, self.s
        self._call_head(accumulate=False)
        # Forward and backward through the blocks overwrite their inputs, which are restored before each call.
        self.reset_x = restorer(a.x)
        self.reset_dx = restorer(s.dx, s.dx16)
        s.logits[...] = self.random.standard_normal(s.logits.shape, dtype=np.float32)
        self._reset_logits = restorer(s.logits)

    @abstractmethod
    def forward_parts(self) -> list[KernelCase]:
        """Return the kernels of the forward pass of a block."""

    @abstractmethod
    def backward_passes(self) -> list[KernelCase]:
        """Return the kernels of the backward pass of a block that are no GEMMs."""

    @abstractmethod
    def linear_arrays(self) -> Mapping[str, LinearArrays]:
        """Return linear layer → the arrays of its backward pass."""

    @property
    def d_stream(self) -> Floats:
        """The gradient of the residual stream, (rows, channels)."""
        dx: Floats = self.s.dx
        return dx

    def product(self, columns: int, inner: int, result: int, *, adds: bool = False) -> KernelWork:
        """Return the work of a GEMM over all rows; `result`: bytes per element of the result."""
        return gemm_work(self.rows, columns, inner, adds=adds, operand=SHORT, result=result)

    def attention_arrays(self) -> AttentionActivations:
        """Return the arrays of the first block's attention."""
        return AttentionActivations(self.acts.qkv[0], self.acts.attn[0], self.acts.attn_lse[0])

    def adapter(self, name: str) -> SecondProduct:
        """Return the product of the first block's adapter of a linear layer, of 0 columns without."""
        return SecondProduct(getattr(self.acts, f"{name}_xa")[0], getattr(self.packed, f"{name}_b")[0])

    def kept(self) -> NormalizedRows:
        """Return the normalised rows of the first block's first norm."""
        return NormalizedRows(self.acts.normed1[0], self.acts.rstd1[0])

    def forward_blocks(self) -> list[KernelCase]:
        """Return forward through all blocks, and its parts."""
        call = partial(self.compute.forward, self.bank, self.slot)
        return self.whole(FORWARD, self.forward_parts(), call, self.reset_x)

    def head(self) -> list[KernelCase]:
        """Return the output projection with cross-entropy and its gradient, and its parts."""
        p, s, r, upcast = self.packed, self.s, self.rows, self.s.thread.upcast
        packed, packed_t = self.projection(p), self.projection(p, "_t")
        v, c, chunk = self.geometry.vocabulary, self.geometry.channels, s.logits.shape[0]
        chunks = -(-r // chunk)
        calls = self.micro * chunks
        h, dh, targets = s.h[:chunk], s.dh[:chunk], self.slot.targets[:chunk]

        def work(rows: int, columns: int, inner: int, adds: bool = False) -> KernelWork:
            return gemm_work(rows, columns, inner, adds=adds, operand=SHORT, result=FLOAT)

        softmax = KernelWork(20.0 * chunk * v, float((FLOAT + SHORT) * chunk * v))
        parts = [
            KernelCase("logits", calls, work(chunk, v, c),
                 partial(logits_forward, h, packed_t, s.logits, upcast), HEAD),
            KernelCase("cross-entropy", calls, softmax,
                 partial(cross_entropy_backward, s.logits, targets, self.scale, s.d_logits), HEAD,
                 self._reset_logits),
            KernelCase("d_head input", calls, work(chunk, c, v),
                 partial(logits_backward_input, s.d_logits, packed, dh, upcast), HEAD),
        ]  # fmt: skip
        if self.projection(self.grads).size:
            parts.append(KernelCase("d_wte slices", calls, work(v, c, chunk, adds=True), self._d_projection, HEAD))
        norms = self.row_work(c, FLOAT + 2 * SHORT, 8), self.row_work(c, 2 * FLOAT + 2 * SHORT, 16)
        done = total([*((case.work, chunks) for case in parts), *((norm, 1) for norm in norms)])
        # Its bound does not count the logits, and counts one layout of the packed embeddings.
        rows = r * (c * (2 * FLOAT + SHORT) + FLOAT)
        head = KernelWork(done.flops, float(rows + v * c * (SHORT + 2 * FLOAT)), done.products)
        return [KernelCase(HEAD, self.micro, head, self._call_head), *parts]

    def backward_blocks(self) -> list[KernelCase]:
        """Return backward through all blocks, and its parts."""
        parts = [*self._input_gradients(), *self._weight_gradients(), *self.backward_passes()]
        call = partial(
            self.layout16.kernels.blocks_backward,
            self.weights16, self.acts, self.grads, self.s, self.sequences, self.constants, self.ticket,
        )  # fmt: skip
        return self.whole(BACKWARD, parts, call, self.reset_dx)

    def _call_head(self, *, accumulate: bool = True) -> None:
        self.layout16.kernels.head_backward(
            self.weights16, self.acts, self.slot.targets, self.scale, self.grads, self.s, self.constants,
            self.ticket._replace(accumulate=accumulate),
        )  # fmt: skip

    def _d_projection(self) -> None:
        """Add the gradient of one chunk of the output projection, by slices of the vocabulary."""
        s, gradient = self.s, self.projection(self.grads)
        vocabulary, width, chunk = gradient.shape[0], s.d_logits_t.shape[0], s.d_logits.shape[0]
        for first in range(0, vocabulary, width):
            last = min(first + width, vocabulary)
            d_logits_t = s.d_logits_t[: last - first]
            transpose_bf16(s.d_logits[:, first:last], d_logits_t)
            linear_backward_weight(d_logits_t, s.h[:chunk], gradient[first:last], True, s.thread.upcast)

    def _input_gradients(self) -> list[KernelCase]:
        calls, arrays, p = self.micro * self.geometry.layers, self.linear_arrays(), self.packed

        def weight(name: str) -> PackedPair:
            return PackedPair(getattr(p, name)[0], getattr(p, f"{name}_t")[0])

        def no_adapter(name: str) -> SecondProduct:
            return SecondProduct(self.s.d_xa[:0].reshape(0, 0), getattr(p, f"{name}_a")[0])

        return [
            KernelCase(f"d_{name} input", calls, self.product(inputs, outputs, arrays[name].dx.itemsize), partial(
                linear_backward_input, arrays[name].d_out, weight(name), no_adapter(name), arrays[name].dx, False,
                self.s.thread,
            ), BACKWARD)
            for name, inputs, outputs in self.linears()
        ]  # fmt: skip

    def _weight_gradients(self) -> list[KernelCase]:
        """Return the GEMMs and the transposes of their first operands, two of which are outputs of a norm."""
        s, arrays, calls = self.s, self.linear_arrays(), self.micro * self.geometry.layers
        parts = [
            KernelCase(f"d_{name} weight", calls,
                 gemm_work(inputs, outputs, self.rows, adds=True, operand=SHORT, result=FLOAT),
                 partial(linear_backward_weight, s.transposed[:inputs], arrays[name].d_out,
                         getattr(self.grads, f"{name}_weight")[0], True, s.thread.upcast), BACKWARD)
            for name, inputs, outputs in self.linears() if f"{name}_weight" in self.trained
        ]  # fmt: skip

        def transposes() -> None:
            for x, _, _ in arrays.values():
                transpose_bf16(x, s.transposed[: x.shape[1]])

        width = sum(x.shape[1] for x, _, _ in arrays.values())
        transposed = KernelCase("transposes (4)", calls, self.row_work(width, 2 * SHORT, 0), transposes, BACKWARD)
        return [*parts, transposed] if parts else []
