"""The kernels of an update in float32, each with its work (`stages.tools.bench.kernel_bench`).

In bf16x3 they are the same kernels with another GEMM, which `gemm_settings` selects.
"""

from functools import partial

import numpy as np

from threadloom import kernels
from threadloom.kernels import Activations, Affine, AttentionActivations, Floats, HeadCounts, RowStatistics, Scratch
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD, HEAD, KernelBench
from threadloom.stages.tools.bench.kernel_case import KernelCase
from threadloom.stages.tools.bench.roofline import FLOAT, KernelWork, attention_work, gemm_work, total


class Float32Bench(KernelBench):
    """The kernels in float32."""

    EMBEDDING_BYTES = FLOAT

    def __init__(self, config: ResolvedConfig) -> None:
        """Allocate the memory; the caller keeps `gemm_settings(config)` active here and during the calls."""
        super().__init__(config)
        self.acts: Activations = self.slot.activations
        self.s: Scratch = self.scratch
        s, acts, targets = self.s, self.acts, self.slot.targets
        overwriting = self.ticket._replace(accumulate=False)
        kernels.head_backward(self.weights, acts, targets, self.scale, self.grads, s, self.constants, overwriting)
        self._dx = s.dx.copy()  # the input of backward through the last block
        self._d_fc = np.ascontiguousarray(self.random.standard_normal(s.d_fc.shape, dtype=np.float32))
        self._logits = self.random.standard_normal(s.logits.shape, dtype=np.float32)

    @property
    def d_stream(self) -> Floats:
        """The gradient of the residual stream, (rows, channels)."""
        return self.s.dx

    def forward_blocks(self) -> list[KernelCase]:
        """Return forward through all blocks, and its parts."""
        w, a, g, r = self.weights, self.acts, self.geometry, self.rows
        calls = self.micro * g.layers
        products = {name: gemm_work(r, outputs, inputs) for name, inputs, outputs in self.linears()}
        residual = KernelWork(0.0, float(FLOAT * r * g.channels))  # added by the projections: one more array to read
        for name in ("attn_proj", "mlp_proj"):
            products[name] = total([(products[name], 1), (residual, 1)])
        attention = attention_work(self.sequences, g.context, g.channels, backward=False)
        norm, gelu = self.row_work(g.channels, 2 * FLOAT, 8), self.row_work(g.hidden, 2 * FLOAT, 20)
        parts = [
            KernelCase("LayerNorm", 2 * calls, norm, partial(
                kernels.layernorm_forward, a.x[0], Affine(w.ln1_weight[0], w.ln1_bias[0]), a.h, self._statistics()
            ), FORWARD),
            KernelCase("qkv", calls, products["qkv"], partial(
                kernels.linear_forward, a.h, w.qkv_weight[0], w.qkv_bias[0], a.qkv[0]
            ), FORWARD),
            KernelCase("attention", calls, attention, partial(
                kernels.attention_forward, self._attention(), self.sequences, self._heads, a.scores
            ), FORWARD),
            KernelCase("attn_proj", calls, products["attn_proj"], partial(
                kernels.linear_residual_forward,
                a.attn[0], w.attn_proj_weight[0], w.attn_proj_bias[0], a.x[0], a.x_mid[0],
            ), FORWARD),
            KernelCase("fc", calls, products["fc"], partial(
                kernels.linear_forward, a.h, w.fc_weight[0], w.fc_bias[0], a.fc[0]
            ), FORWARD),
            KernelCase("GELU", calls, gelu, partial(kernels.gelu_forward, a.fc[0], a.gelu), FORWARD),
            KernelCase("mlp_proj", calls, products["mlp_proj"], partial(
                kernels.linear_residual_forward,
                a.gelu, w.mlp_proj_weight[0], w.mlp_proj_bias[0], a.x_mid[0], a.x[1],
            ), FORWARD),
        ]  # fmt: skip
        return self.whole(FORWARD, parts, partial(self.compute.forward, self.bank, self.slot))

    def head(self) -> list[KernelCase]:
        """Return the output projection with cross-entropy and its gradient, and its parts."""
        w, s, r, slot = self.weights, self.s, self.rows, self.slot
        v, c = self.geometry.vocabulary, self.geometry.channels
        chunk = s.logits.shape[0]
        chunks = -(-r // chunk)
        calls = self.micro * chunks
        h, targets = s.h[:chunk], slot.targets[:chunk]
        softmax = KernelWork(20.0 * chunk * v, 2.0 * FLOAT * chunk * v, held=float(FLOAT * chunk * v))
        # The scale is a Python float, as in training: a NumPy float64 would select a slower kernel.
        parts = [
            KernelCase("logits", calls, gemm_work(chunk, v, c),
                 partial(kernels.logits_forward, h, w.wte, s.logits), HEAD),
            KernelCase("cross-entropy", calls, softmax,
                 partial(kernels.cross_entropy_backward, s.logits, targets, self.scale), HEAD,
                 partial(np.copyto, s.logits, self._logits)),
            KernelCase("d_wte", calls, gemm_work(v, c, chunk, adds=True),
                 partial(kernels.linear_backward_weight, s.logits, h, self.grads.wte, True), HEAD),
            KernelCase("d_head input", calls, gemm_work(chunk, c, v),
                 partial(kernels.logits_backward_input, s.logits, w.wte, s.dh[:chunk]), HEAD),
        ]  # fmt: skip
        norms = (self.row_work(c, 2 * FLOAT, 8), 1), (self.row_work(c, 3 * FLOAT, 14), 1)
        done = total([*((case.work, chunks) for case in parts), *norms])
        # The logits are internal to the head, so its bound does not count them.
        work = KernelWork(done.flops, FLOAT * float(2 * r * c + r + 3 * v * c), done.products)
        call = partial(
            kernels.head_backward,
            w, self.acts, slot.targets, self.scale, self.grads, s, self.constants, self.ticket,
        )  # fmt: skip
        return [KernelCase(HEAD, self.micro, work, call), *parts]

    def backward_blocks(self) -> list[KernelCase]:
        """Return backward through all blocks, and its parts."""
        w, a, s = self.weights, self.acts, self.s
        parts = [*self._backward_products(), *self._backward_passes()]
        call = partial(kernels.blocks_backward, w, a, self.grads, s, self.sequences, self.constants, self.ticket)
        return self.whole(BACKWARD, parts, call, partial(np.copyto, s.dx, self._dx))

    def _statistics(self) -> RowStatistics:
        return RowStatistics(self.acts.ln1_mean[0], self.acts.ln1_rstd[0])

    def _attention(self) -> AttentionActivations:
        return AttentionActivations(self.acts.qkv[0], self.acts.attn[0], self.acts.attn_lse[0])

    @property
    def _heads(self) -> HeadCounts:
        return HeadCounts(self.geometry.heads, self.geometry.heads)

    def _backward_products(self) -> list[KernelCase]:
        w, a, d, s, r = self.weights, self.acts, self.grads, self.s, self.rows
        calls = self.micro * self.geometry.layers
        into = {"qkv": s.d_qkv, "attn_proj": s.dx, "fc": s.d_fc, "mlp_proj": s.dx}
        given = {"qkv": s.h, "attn_proj": a.attn[0], "fc": s.h, "mlp_proj": s.gelu}
        back = {"qkv": s.dh, "attn_proj": s.d_attn, "fc": s.dh, "mlp_proj": s.d_fc}
        parts = []
        for name, inputs, outputs in self.linears():
            weight, gradient = getattr(w, f"{name}_weight")[0], getattr(d, f"{name}_weight")[0]
            parts += [
                KernelCase(f"d_{name} weight", calls, gemm_work(inputs, outputs, r, adds=True),
                     partial(kernels.linear_backward_weight, given[name], into[name], gradient, True), BACKWARD),
                KernelCase(f"d_{name} input", calls, gemm_work(r, inputs, outputs),
                     partial(kernels.linear_backward_input, into[name], weight, back[name]), BACKWARD),
            ]  # fmt: skip
        return parts

    def _backward_passes(self) -> list[KernelCase]:
        w, a, d, g, s, r = self.weights, self.acts, self.grads, self.geometry, self.s, self.rows
        calls = self.micro * g.layers
        c, f = g.channels, g.hidden
        bias = KernelWork(float(r * (5 * c + f)), FLOAT * float(r * (5 * c + f)), held=FLOAT * float(r * (4 * c + f)))

        def biases() -> None:
            kernels.linear_backward_bias(s.dx, d.mlp_proj_bias[0], True)
            kernels.linear_backward_bias(s.d_fc, d.fc_bias[0], True)
            kernels.linear_backward_bias(s.dx, d.attn_proj_bias[0], True)
            kernels.linear_backward_bias(s.d_qkv, d.qkv_bias[0], True)

        attention = attention_work(self.sequences, g.context, c, backward=True)
        reset_fc, reset_dx = partial(np.copyto, s.d_fc, self._d_fc), partial(np.copyto, s.dx, self._dx)
        return [
            KernelCase("d_biases (4)", calls, bias, biases, BACKWARD),
            KernelCase("d_attention", calls, attention, partial(
                kernels.attention_backward, s.d_attn, self._attention(), self.sequences, self._heads, s.d_qkv, s.scores
            ), BACKWARD),
            KernelCase("d_GELU", calls, self.row_work(f, 4 * FLOAT, 30, in_place=FLOAT),
                 partial(kernels.gelu_backward, a.fc[0], s.d_fc, s.gelu), BACKWARD, reset_fc),
            KernelCase("LayerNorm recomputed", 2 * calls, self.row_work(c, 2 * FLOAT, 4), partial(
                kernels.layernorm_apply, a.x[0], Affine(w.ln1_weight[0], w.ln1_bias[0]), self._statistics(), s.h
            ), BACKWARD),
            KernelCase("d_LayerNorm", 2 * calls, self.row_work(c, 4 * FLOAT, 14, in_place=FLOAT), partial(
                kernels.layernorm_backward,
                s.dh, a.x[0], w.ln1_weight[0], self._statistics(), s.dx, Affine(d.ln1_weight[0], d.ln1_bias[0]), True,
            ), BACKWARD, reset_dx),
        ]  # fmt: skip
