"""The kernels of an update in float32 that every architecture has, each with its work.

In bf16x3 they are the same kernels with another GEMM, which `gemm_settings` selects.
"""

from abc import abstractmethod
from functools import partial
from typing import Any

import numpy as np

from threadloom import kernels
from threadloom.kernels import AttentionActivations, Floats
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD, HEAD, KernelBench
from threadloom.stages.tools.bench.kernel_case import KernelCase
from threadloom.stages.tools.bench.roofline import FLOAT, KernelWork, gemm_work, total


class Float32Bench(KernelBench):
    """The kernels in float32."""

    EMBEDDING_BYTES = FLOAT

    def __init__(self, config: ResolvedConfig) -> None:
        """Allocate the memory; the caller keeps `gemm_settings(config)` active here and during the calls."""
        super().__init__(config)
        self.acts: Any = self.slot.activations
        self.s: Any = self.scratch
        self._call_head(accumulate=False)
        self._dx = self.s.dx.copy()  # the input of backward through the last block
        self._logits = self.random.standard_normal(self.s.logits.shape, dtype=np.float32)

    @abstractmethod
    def forward_parts(self) -> list[KernelCase]:
        """Return the kernels of the forward pass of a block."""

    @abstractmethod
    def backward_passes(self) -> list[KernelCase]:
        """Return the kernels of the backward pass of a block that are no GEMMs."""

    @abstractmethod
    def linear_arrays(self) -> dict[str, tuple[Floats, Floats, Floats]]:
        """Return linear layer → its input, the gradient of its output, the array for the gradient of its input."""

    @property
    def d_stream(self) -> Floats:
        """The gradient of the residual stream, (rows, channels)."""
        dx: Floats = self.s.dx
        return dx

    def reset_dx(self) -> None:
        """Restore the gradient of the residual stream, which the backward pass overwrites."""
        np.copyto(self.s.dx, self._dx)

    def linear_works(self, residual: tuple[str, ...]) -> dict[str, KernelWork]:
        """Return linear layer → the work of its GEMM; those in `residual` read the residual stream in addition."""
        added = KernelWork(0.0, float(FLOAT * self.rows * self.geometry.channels))
        works = {name: gemm_work(self.rows, outputs, inputs) for name, inputs, outputs in self.linears()}
        return works | {name: total([(works[name], 1), (added, 1)]) for name in residual}

    def attention_arrays(self) -> AttentionActivations:
        """Return the arrays of the first block's attention."""
        return AttentionActivations(self.acts.qkv[0], self.acts.attn[0], self.acts.attn_lse[0])

    def forward_blocks(self) -> list[KernelCase]:
        """Return forward through all blocks, and its parts."""
        return self.whole(FORWARD, self.forward_parts(), partial(self.compute.forward, self.bank, self.slot))

    def head(self) -> list[KernelCase]:
        """Return the output projection with cross-entropy and its gradient, and its parts."""
        weight, s, r = self.projection(self.weights), self.s, self.rows
        v, c = self.geometry.vocabulary, self.geometry.channels
        chunk = s.logits.shape[0]
        chunks = -(-r // chunk)
        calls = self.micro * chunks
        h, targets = s.h[:chunk], self.slot.targets[:chunk]
        softmax = KernelWork(20.0 * chunk * v, 2.0 * FLOAT * chunk * v, held=float(FLOAT * chunk * v))
        # The scale is a Python float, as in training: a NumPy float64 would select a slower kernel.
        parts = [
            KernelCase("logits", calls, gemm_work(chunk, v, c),
                 partial(kernels.logits_forward, h, weight, s.logits), HEAD),
            KernelCase("cross-entropy", calls, softmax,
                 partial(kernels.cross_entropy_backward, s.logits, targets, self.scale), HEAD,
                 partial(np.copyto, s.logits, self._logits)),
            *self._d_projection(calls),
            KernelCase("d_head input", calls, gemm_work(chunk, c, v),
                 partial(kernels.logits_backward_input, s.logits, weight, s.dh[:chunk]), HEAD),
        ]  # fmt: skip
        norms = (self.row_work(c, 2 * FLOAT, 8), 1), (self.row_work(c, 3 * FLOAT, 14), 1)
        done = total([*((case.work, chunks) for case in parts), *norms])
        # The logits are internal to the head, so its bound does not count them.
        work = KernelWork(done.flops, FLOAT * float(2 * r * c + r + 3 * v * c), done.products)
        return [KernelCase(HEAD, self.micro, work, self._call_head), *parts]

    def _d_projection(self, calls: int) -> list[KernelCase]:
        """Return the gradient of the output projection, if it is trained."""
        gradient, chunk = self.projection(self.grads), self.s.logits.shape[0]
        work = gemm_work(self.geometry.vocabulary, self.geometry.channels, chunk, adds=True)
        call = partial(kernels.linear_backward_weight, self.s.logits, self.s.h[:chunk], gradient, True)
        return [KernelCase("d_wte", calls, work, call, HEAD)] if gradient.size else []

    def backward_blocks(self) -> list[KernelCase]:
        """Return backward through all blocks, and its parts."""
        parts = [*self._backward_products(), *self.backward_passes()]
        call = partial(
            self.layout.kernels.blocks_backward,
            self.weights, self.acts, self.grads, self.s, self.sequences, self.constants, self.ticket,
        )  # fmt: skip
        return self.whole(BACKWARD, parts, call, self.reset_dx)

    def _call_head(self, *, accumulate: bool = True) -> None:
        self.layout.kernels.head_backward(
            self.weights, self.acts, self.slot.targets, self.scale, self.grads, self.s, self.constants,
            self.ticket._replace(accumulate=accumulate),
        )  # fmt: skip

    def _backward_products(self) -> list[KernelCase]:
        calls, arrays, parts = self.micro * self.geometry.layers, self.linear_arrays(), list[KernelCase]()
        for name, inputs, outputs in self.linears():
            x, d_out, dx = arrays[name]
            weight, gradient = (getattr(tensors, f"{name}_weight")[0] for tensors in (self.weights, self.grads))
            if gradient.size:
                work = gemm_work(inputs, outputs, self.rows, adds=True)
                call = partial(kernels.linear_backward_weight, x, d_out, gradient, True)
                parts.append(KernelCase(f"d_{name} weight", calls, work, call, BACKWARD))
            work, call = (
                gemm_work(self.rows, inputs, outputs),
                partial(kernels.linear_backward_input, d_out, weight, dx),
            )
            parts.append(KernelCase(f"d_{name} input", calls, work, call, BACKWARD))
        return parts
