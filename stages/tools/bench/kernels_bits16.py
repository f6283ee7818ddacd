"""The kernels of an update in 16 bits, each with its work (`stages.tools.bench.kernel_bench`).

One table serves both formats: `kernels.bits16.linear` selects the GEMM by the type of the packed weights. Bytes are
counted as the tensors are stored: 2 per element between layers and in packed weights, 4 in the residual stream, its
gradient, the logits and the gradients of weights.
"""

from functools import partial

import numpy as np

from threadloom.kernels import Floats
from threadloom.kernels.bits16 import (
    Forms,
    LowActivations,
    LowScratch,
    Workspace,
    bias_backward_low,
    blocks_backward_low,
    cross_entropy_backward_low,
    gelu_backward_low,
    head_backward_low,
    layernorm_apply_turned,
    layernorm_backward_low,
    layernorm_forward_low,
    product_float,
    product_gelu,
    product_outer,
    product_rounded,
)
from threadloom.kernels.bits16.attention import attention_backward_low, attention_forward_low
from threadloom.kernels.matmul import Op, transpose_bf16
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD, HEAD, KernelBench
from threadloom.stages.tools.bench.kernel_case import KernelCase, restorer
from threadloom.stages.tools.bench.roofline import FLOAT, SHORT, KernelWork, attention_work, gemm_work, total


class Bits16Bench(KernelBench):
    """The kernels in bfloat16 or float16."""

    EMBEDDING_BYTES = SHORT

    def __init__(self, config: ResolvedConfig) -> None:
        """Allocate the memory; the caller keeps `gemm_settings(config)` active here and during the calls."""
        super().__init__(config)
        self.forms: Forms = self.bank.packed
        self.acts: LowActivations = self.slot.activations
        self.s: LowScratch = self.scratch.scratch
        self.work: Workspace = self.scratch.work
        a, s = self.acts, self.s
        self._call_head(accumulate=False)
        # Forward and backward through the blocks overwrite their inputs, which are restored before each call.
        self._reset_x = restorer(a.x)
        self._reset_dx = restorer(s.dx, s.dx_low)
        self._reset_d_fc = restorer(s.d_fc)
        s.logits[...] = self.random.standard_normal(s.logits.shape, dtype=np.float32)
        self._reset_logits = restorer(s.logits)

    @property
    def d_stream(self) -> Floats:
        """The gradient of the residual stream, (rows, channels)."""
        return self.s.dx

    def _call_head(self, accumulate: bool) -> None:
        targets, work = self.slot.targets, self.work
        head_backward_low(
            self.weights,
            self.forms,
            self.acts.x,
            targets,
            self.scale,
            self.grads,
            self.s,
            work,
            accumulate,
            self.ticket,
        )

    def _product(self, columns: int, inner: int, result: int, *, adds: bool = False) -> KernelWork:
        """Return the work of a GEMM over all rows; `result`: bytes per element of the result."""
        return gemm_work(self.rows, columns, inner, adds=adds, operand=SHORT, result=result)

    def forward_blocks(self) -> list[KernelCase]:
        """Return forward through all blocks, and its parts."""
        w, f, a, g = self.weights, self.forms, self.acts, self.geometry
        calls, c, hidden, wide = self.micro * g.layers, g.channels, g.hidden, self.work.wide
        attention = attention_work(self.sequences, g.context, c, backward=False, element=SHORT)
        gelu = self.row_work(hidden, SHORT, 20)  # its input and output are counted as results of the GEMM
        parts = [
            # The stream is read, and written with the next bias added; the normalised rows and the output are written.
            KernelCase("LayerNorm", 2 * calls, self.row_work(c, 2 * FLOAT + 2 * SHORT, 10, FLOAT), partial(
                layernorm_forward_low,
                a.x, w.ln1_weight[0], w.ln1_bias[0], w.attn_proj_bias[0], a.normed1[0], a.h, a.rstd1[0],
            ), FORWARD, self._reset_x),
            KernelCase("qkv", calls, self._product(3 * c, c, SHORT), partial(
                product_rounded, a.h, f.qkv[0], Op.N, w.qkv_bias[0], a.qkv[0], wide
            ), FORWARD),
            KernelCase("attention", calls, attention, partial(
                attention_forward_low, a.qkv[0], self.sequences, g.heads, a.attn[0], a.attn_lse[0], self.work.attention
            ), FORWARD),
            KernelCase("attn_proj", calls, self._product(c, c, FLOAT, adds=True), partial(
                product_float, a.attn[0], f.attn_proj[0], Op.N, a.x, True, wide
            ), FORWARD, self._reset_x),
            KernelCase("fc + GELU", calls, total([(self._product(hidden, c, SHORT), 1), (gelu, 1)]), partial(
                product_gelu, a.h, f.fc[0], w.fc_bias[0], a.fc[0], a.gelu, wide
            ), FORWARD),
            KernelCase("mlp_proj", calls, self._product(c, hidden, FLOAT, adds=True), partial(
                product_float, a.gelu, f.mlp_proj[0], Op.N, a.x, True, wide
            ), FORWARD, self._reset_x),
        ]  # fmt: skip
        return self.whole(FORWARD, parts, partial(self.compute.forward, self.bank, self.slot), self._reset_x)

    def head(self) -> list[KernelCase]:
        """Return the output projection with cross-entropy and its gradient, and its parts."""
        f, s, r, wide = self.forms, self.s, self.rows, self.work.wide
        v, c, chunk = self.geometry.vocabulary, self.geometry.channels, s.logits.shape[0]
        chunks = -(-r // chunk)
        calls = self.micro * chunks
        h, dh, targets = s.h[:chunk], s.dh[:chunk], self.slot.targets[:chunk]

        def work(rows: int, columns: int, inner: int, adds: bool = False) -> KernelWork:
            return gemm_work(rows, columns, inner, adds=adds, operand=SHORT, result=FLOAT)

        softmax = KernelWork(20.0 * chunk * v, float((FLOAT + SHORT) * chunk * v))
        parts = [
            KernelCase("logits", calls, work(chunk, v, c),
                 partial(product_float, h, f.wte_t, Op.T, s.logits, False, wide), HEAD),
            KernelCase("cross-entropy", calls, softmax,
                 partial(cross_entropy_backward_low, s.logits, targets, self.scale, s.d_logits), HEAD,
                 self._reset_logits),
            KernelCase("d_head input", calls, work(chunk, c, v),
                 partial(product_float, s.d_logits, f.wte, Op.N, dh, False, wide), HEAD),
            KernelCase("d_wte slices", calls, work(v, c, chunk, adds=True), self._d_wte, HEAD),
        ]  # fmt: skip
        norms = self.row_work(c, FLOAT + 2 * SHORT, 8), self.row_work(c, 2 * FLOAT + 2 * SHORT, 16)
        done = total([*((case.work, chunks) for case in parts), *((norm, 1) for norm in norms)])
        # Its bound does not count the logits, and counts one layout of the packed embeddings.
        rows = r * (c * (2 * FLOAT + SHORT) + FLOAT)
        head = KernelWork(done.flops, float(rows + v * c * (SHORT + 2 * FLOAT)), done.products)
        return [KernelCase(HEAD, self.micro, head, partial(self._call_head, accumulate=True)), *parts]

    def _d_wte(self) -> None:
        """Add the gradient of one chunk of the output projection, by slices of the vocabulary."""
        s, d_wte = self.s, self.grads.wte
        vocabulary, width, chunk = d_wte.shape[0], s.d_logits_turned.shape[0], s.d_logits.shape[0]
        for first in range(0, vocabulary, width):
            last = min(first + width, vocabulary)
            turned = s.d_logits_turned[: last - first]
            transpose_bf16(s.d_logits[:, first:last], turned)
            product_outer(turned, s.h[:chunk], d_wte[first:last], True, self.work.wide)

    def backward_blocks(self) -> list[KernelCase]:
        """Return backward through all blocks, and its parts."""
        parts = [*self._input_gradients(), *self._weight_gradients(), *self._backward_passes()]
        call = partial(
            blocks_backward_low, self.weights, self.forms, self.acts, self.grads, self.s, self.work, self.sequences,
            self.geometry.heads, True, self.ticket,
        )  # fmt: skip
        return self.whole(BACKWARD, parts, call, self._reset_dx)

    def _input_gradients(self) -> list[KernelCase]:
        f, s, wide, nothing = self.forms, self.s, self.work.wide, self.s.d_bias[:0]
        g, calls = self.geometry, self.micro * self.geometry.layers
        c, hidden = g.channels, g.hidden
        return [
            KernelCase("d_qkv input", calls, self._product(c, 3 * c, FLOAT), partial(
                product_float, s.d_qkv, f.qkv_t[0], Op.T, s.dh, False, wide
            ), BACKWARD),
            KernelCase("d_attn_proj input", calls, self._product(c, c, SHORT), partial(
                product_rounded, s.dx_low, f.attn_proj_t[0], Op.T, nothing, s.d_attn, wide
            ), BACKWARD),
            KernelCase("d_fc input", calls, self._product(c, hidden, FLOAT), partial(
                product_float, s.d_fc, f.fc_t[0], Op.T, s.dh, False, wide
            ), BACKWARD),
            KernelCase("d_mlp_proj input", calls, self._product(hidden, c, SHORT), partial(
                product_rounded, s.dx_low, f.mlp_proj_t[0], Op.T, nothing, s.d_fc, wide
            ), BACKWARD),
        ]  # fmt: skip

    def _weight_gradients(self) -> list[KernelCase]:
        """Return the GEMMs and the transposes of their first operands, two of which are outputs of a LayerNorm."""
        w, a, d, s, wide = self.weights, self.acts, self.grads, self.s, self.work.wide
        calls, c = self.micro * self.geometry.layers, self.geometry.channels
        given = {"qkv": a.normed1[0], "attn_proj": a.attn[0], "fc": a.normed2[0], "mlp_proj": s.gelu}
        into = {"qkv": s.d_qkv, "attn_proj": s.dx_low, "fc": s.d_fc, "mlp_proj": s.dx_low}
        parts = [
            KernelCase(f"d_{name} weight", calls,
                 gemm_work(inputs, outputs, self.rows, adds=True, operand=SHORT, result=FLOAT),
                 partial(product_outer, s.turned[:inputs], into[name], getattr(d, f"{name}_weight")[0], True, wide),
                 BACKWARD)
            for name, inputs, outputs in self.linears()
        ]  # fmt: skip

        def transposes() -> None:
            for x in given.values():
                transpose_bf16(x, s.turned[: x.shape[1]])

        width = sum(x.shape[1] for x in given.values())
        turned = partial(layernorm_apply_turned, s.turned[:c], w.ln1_weight[0], w.ln1_bias[0])
        return [
            *parts,
            KernelCase("transposes (4)", calls, self.row_work(width, 2 * SHORT, 0), transposes, BACKWARD),
            KernelCase("LayerNorm transposed", 2 * calls, self.row_work(c, 2 * SHORT, 2), turned, BACKWARD),
        ]

    def _backward_passes(self) -> list[KernelCase]:
        w, a, d, g, s = self.weights, self.acts, self.grads, self.geometry, self.s
        calls, c = self.micro * g.layers, g.channels
        attention = attention_work(self.sequences, g.context, c, backward=True, element=SHORT)
        return [
            KernelCase("d_attention", calls, attention, partial(
                attention_backward_low, s.d_attn, a.attn[0], a.qkv[0], a.attn_lse[0], self.sequences, g.heads,
                s.d_qkv, self.work.attention,
            ), BACKWARD),
            KernelCase("d_qkv bias", calls, self.row_work(3 * c, SHORT, 1),
                 partial(bias_backward_low, s.d_qkv, d.qkv_bias[0], True), BACKWARD),
            KernelCase("d_GELU", calls, self.row_work(g.hidden, 4 * SHORT, 31, in_place=SHORT),
                 partial(gelu_backward_low, a.fc[0], s.d_fc, s.gelu, d.fc_bias[0], True), BACKWARD, self._reset_d_fc),
            KernelCase("d_LayerNorm", 2 * calls, self.row_work(c, 3 * FLOAT + 2 * SHORT, 16, in_place=FLOAT), partial(
                layernorm_backward_low, s.dh, a.normed1[0], w.ln1_weight[0], a.rstd1[0], s.dx, s.dx_low,
                d.ln1_weight[0], d.ln1_bias[0], d.attn_proj_bias[0], True, True,
            ), BACKWARD, self._reset_dx),
        ]  # fmt: skip
