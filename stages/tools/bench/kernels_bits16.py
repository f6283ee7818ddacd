"""The kernels of an update in 16 bits, each with its work (`stages.tools.bench.kernel_bench`).

One table serves both formats: `kernels.bits16.linear` selects the GEMM by the type of the packed weights. Bytes are
counted as the tensors are stored: 2 per element between layers and in packed weights, 4 in the residual stream, its
gradient, the logits and the gradients of weights.
"""

from functools import partial

import numpy as np

from threadloom.kernels import AccumulationTicket, AttentionActivations, Floats, HeadCounts
from threadloom.kernels.bits16 import (
    Activations16,
    LayerNormGradients,
    NormalizedRows,
    Scratch16,
    Weights16,
    attention_backward,
    attention_forward,
    blocks_backward,
    cross_entropy_backward,
    gelu_backward,
    head_backward,
    layernorm_apply_transposed,
    layernorm_backward,
    layernorm_forward,
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_gelu_forward,
    linear_residual_forward,
    logits_backward_input,
    logits_forward,
)
from threadloom.kernels.common import Affine
from threadloom.kernels.matmul import transpose_bf16
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
        self.weights16 = Weights16(self.weights, self.bank.packed)
        self.acts: Activations16 = self.slot.activations
        self.s: Scratch16 = self.scratch
        a, s = self.acts, self.s
        self._call_head(self.ticket._replace(accumulate=False))
        # Forward and backward through the blocks overwrite their inputs, which are restored before each call.
        self._reset_x = restorer(a.x)
        self._reset_dx = restorer(s.dx, s.dx16)
        self._reset_d_fc = restorer(s.d_fc)
        s.logits[...] = self.random.standard_normal(s.logits.shape, dtype=np.float32)
        self._reset_logits = restorer(s.logits)

    @property
    def d_stream(self) -> Floats:
        """The gradient of the residual stream, (rows, channels)."""
        return self.s.dx

    def _call_head(self, ticket: AccumulationTicket) -> None:
        targets, constants = self.slot.targets, self.constants
        head_backward(self.weights16, self.acts, targets, self.scale, self.grads, self.s, constants, ticket)

    def _product(self, columns: int, inner: int, result: int, *, adds: bool = False) -> KernelWork:
        """Return the work of a GEMM over all rows; `result`: bytes per element of the result."""
        return gemm_work(self.rows, columns, inner, adds=adds, operand=SHORT, result=result)

    def forward_blocks(self) -> list[KernelCase]:
        """Return forward through all blocks, and its parts."""
        (w, p), a, g = self.weights16, self.acts, self.geometry
        calls, c, hidden, upcast = self.micro * g.layers, g.channels, g.hidden, a.thread.upcast
        attention = attention_work(self.sequences, g.context, c, backward=False, element=SHORT)
        gelu = self.row_work(hidden, SHORT, 20)  # its input and output are counted as results of the GEMM
        parts = [
            # The stream is read, and written with the next bias added; the normalised rows and the output are written.
            KernelCase("LayerNorm", 2 * calls, self.row_work(c, 2 * FLOAT + 2 * SHORT, 10, FLOAT), partial(
                layernorm_forward,
                a.x, Affine(w.ln1_weight[0], w.ln1_bias[0]), w.attn_proj_bias[0], self._kept(), a.h,
            ), FORWARD, self._reset_x),
            KernelCase("qkv", calls, self._product(3 * c, c, SHORT), partial(
                linear_forward, a.h, p.qkv[0], w.qkv_bias[0], a.qkv[0], upcast
            ), FORWARD),
            KernelCase("attention", calls, attention, partial(
                attention_forward, self._attention(), self.sequences, self._heads, a.thread.attention
            ), FORWARD),
            KernelCase("attn_proj", calls, self._product(c, c, FLOAT, adds=True), partial(
                linear_residual_forward, a.attn[0], p.attn_proj[0], a.x, upcast
            ), FORWARD, self._reset_x),
            KernelCase("fc + GELU", calls, total([(self._product(hidden, c, SHORT), 1), (gelu, 1)]), partial(
                linear_gelu_forward, a.h, p.fc[0], w.fc_bias[0], a.fc[0], a.gelu, upcast
            ), FORWARD),
            KernelCase("mlp_proj", calls, self._product(c, hidden, FLOAT, adds=True), partial(
                linear_residual_forward, a.gelu, p.mlp_proj[0], a.x, upcast
            ), FORWARD, self._reset_x),
        ]  # fmt: skip
        return self.whole(FORWARD, parts, partial(self.compute.forward, self.bank, self.slot), self._reset_x)

    def _attention(self) -> AttentionActivations:
        return AttentionActivations(self.acts.qkv[0], self.acts.attn[0], self.acts.attn_lse[0])

    @property
    def _heads(self) -> HeadCounts:
        return HeadCounts(self.geometry.heads, self.geometry.heads)

    def _kept(self) -> NormalizedRows:
        return NormalizedRows(self.acts.normed1[0], self.acts.rstd1[0])

    def head(self) -> list[KernelCase]:
        """Return the output projection with cross-entropy and its gradient, and its parts."""
        p, s, r, upcast = self.weights16.packed, self.s, self.rows, self.s.thread.upcast
        v, c, chunk = self.geometry.vocabulary, self.geometry.channels, s.logits.shape[0]
        chunks = -(-r // chunk)
        calls = self.micro * chunks
        h, dh, targets = s.h[:chunk], s.dh[:chunk], self.slot.targets[:chunk]

        def work(rows: int, columns: int, inner: int, adds: bool = False) -> KernelWork:
            return gemm_work(rows, columns, inner, adds=adds, operand=SHORT, result=FLOAT)

        softmax = KernelWork(20.0 * chunk * v, float((FLOAT + SHORT) * chunk * v))
        parts = [
            KernelCase("logits", calls, work(chunk, v, c),
                 partial(logits_forward, h, p.wte_t, s.logits, upcast), HEAD),
            KernelCase("cross-entropy", calls, softmax,
                 partial(cross_entropy_backward, s.logits, targets, self.scale, s.d_logits), HEAD,
                 self._reset_logits),
            KernelCase("d_head input", calls, work(chunk, c, v),
                 partial(logits_backward_input, s.d_logits, p.wte, dh, upcast), HEAD),
            KernelCase("d_wte slices", calls, work(v, c, chunk, adds=True), self._d_wte, HEAD),
        ]  # fmt: skip
        norms = self.row_work(c, FLOAT + 2 * SHORT, 8), self.row_work(c, 2 * FLOAT + 2 * SHORT, 16)
        done = total([*((case.work, chunks) for case in parts), *((norm, 1) for norm in norms)])
        # Its bound does not count the logits, and counts one layout of the packed embeddings.
        rows = r * (c * (2 * FLOAT + SHORT) + FLOAT)
        head = KernelWork(done.flops, float(rows + v * c * (SHORT + 2 * FLOAT)), done.products)
        return [KernelCase(HEAD, self.micro, head, partial(self._call_head, self.ticket)), *parts]

    def _d_wte(self) -> None:
        """Add the gradient of one chunk of the output projection, by slices of the vocabulary."""
        s, d_wte = self.s, self.grads.wte
        vocabulary, width, chunk = d_wte.shape[0], s.d_logits_t.shape[0], s.d_logits.shape[0]
        for first in range(0, vocabulary, width):
            last = min(first + width, vocabulary)
            d_logits_t = s.d_logits_t[: last - first]
            transpose_bf16(s.d_logits[:, first:last], d_logits_t)
            linear_backward_weight(d_logits_t, s.h[:chunk], d_wte[first:last], True, s.thread.upcast)

    def backward_blocks(self) -> list[KernelCase]:
        """Return backward through all blocks, and its parts."""
        parts = [*self._input_gradients(), *self._weight_gradients(), *self._backward_passes()]
        constants = self.constants
        call = partial(
            blocks_backward, self.weights16, self.acts, self.grads, self.s, self.sequences, constants, self.ticket
        )  # fmt: skip
        return self.whole(BACKWARD, parts, call, self._reset_dx)

    def _input_gradients(self) -> list[KernelCase]:
        p, s, upcast = self.weights16.packed, self.s, self.s.thread.upcast
        g, calls = self.geometry, self.micro * self.geometry.layers
        c, hidden = g.channels, g.hidden
        return [
            KernelCase("d_qkv input", calls, self._product(c, 3 * c, FLOAT), partial(
                linear_backward_input, s.d_qkv, p.qkv_t[0], s.dh, upcast
            ), BACKWARD),
            KernelCase("d_attn_proj input", calls, self._product(c, c, SHORT), partial(
                linear_backward_input, s.dx16, p.attn_proj_t[0], s.d_attn, upcast
            ), BACKWARD),
            KernelCase("d_fc input", calls, self._product(c, hidden, FLOAT), partial(
                linear_backward_input, s.d_fc, p.fc_t[0], s.dh, upcast
            ), BACKWARD),
            KernelCase("d_mlp_proj input", calls, self._product(hidden, c, SHORT), partial(
                linear_backward_input, s.dx16, p.mlp_proj_t[0], s.d_fc, upcast
            ), BACKWARD),
        ]  # fmt: skip

    def _weight_gradients(self) -> list[KernelCase]:
        """Return the GEMMs and the transposes of their first operands, two of which are outputs of a LayerNorm."""
        w, a, d, s, upcast = self.weights, self.acts, self.grads, self.s, self.s.thread.upcast
        calls, c = self.micro * self.geometry.layers, self.geometry.channels
        given = {"qkv": a.normed1[0], "attn_proj": a.attn[0], "fc": a.normed2[0], "mlp_proj": s.gelu}
        into = {"qkv": s.d_qkv, "attn_proj": s.dx16, "fc": s.d_fc, "mlp_proj": s.dx16}
        parts = [
            KernelCase(f"d_{name} weight", calls,
                 gemm_work(inputs, outputs, self.rows, adds=True, operand=SHORT, result=FLOAT),
                 partial(linear_backward_weight, s.transposed[:inputs], into[name], getattr(d, f"{name}_weight")[0],
                         True, upcast), BACKWARD)
            for name, inputs, outputs in self.linears()
        ]  # fmt: skip

        def transposes() -> None:
            for x in given.values():
                transpose_bf16(x, s.transposed[: x.shape[1]])

        width = sum(x.shape[1] for x in given.values())
        apply = partial(layernorm_apply_transposed, s.transposed[:c], Affine(w.ln1_weight[0], w.ln1_bias[0]))
        return [
            *parts,
            KernelCase("transposes (4)", calls, self.row_work(width, 2 * SHORT, 0), transposes, BACKWARD),
            KernelCase("LayerNorm transposed", 2 * calls, self.row_work(c, 2 * SHORT, 2), apply, BACKWARD),
        ]

    def _backward_passes(self) -> list[KernelCase]:
        w, a, d, g, s = self.weights, self.acts, self.grads, self.geometry, self.s
        calls, c = self.micro * g.layers, g.channels
        attention = attention_work(self.sequences, g.context, c, backward=True, element=SHORT)
        return [
            KernelCase("d_attention", calls, attention, partial(
                attention_backward,
                s.d_attn, self._attention(), self.sequences, self._heads, s.d_qkv, s.thread.attention,
            ), BACKWARD),
            KernelCase("d_qkv bias", calls, self.row_work(3 * c, SHORT, 1),
                 partial(linear_backward_bias, s.d_qkv, d.qkv_bias[0], True), BACKWARD),
            KernelCase("d_GELU", calls, self.row_work(g.hidden, 4 * SHORT, 31, in_place=SHORT),
                 partial(gelu_backward, a.fc[0], s.d_fc, s.gelu, d.fc_bias[0], True), BACKWARD, self._reset_d_fc),
            KernelCase("d_LayerNorm", 2 * calls, self.row_work(c, 3 * FLOAT + 2 * SHORT, 16, in_place=FLOAT), partial(
                layernorm_backward, s.dh, self._kept(), w.ln1_weight[0], s.dx, s.dx16,
                LayerNormGradients(d.ln1_weight[0], d.ln1_bias[0], d.attn_proj_bias[0]), True,
            ), BACKWARD, self._reset_dx),
        ]  # fmt: skip
