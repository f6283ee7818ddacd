"""The kernels of a Llama's blocks in 16 bits."""

from functools import partial

from threadloom.kernels.bits16 import (
    RmsNormGradients,
    attention_backward,
    attention_forward,
    linear_forward,
    linear_residual_forward,
    rmsnorm_apply_transposed,
    rmsnorm_backward,
    rmsnorm_forward,
)
from threadloom.kernels.common import swiglu_backward, swiglu_forward
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD
from threadloom.stages.tools.bench.kernel_case import KernelCase
from threadloom.stages.tools.bench.kernels_bits16 import Bits16Bench, LinearArrays
from threadloom.stages.tools.bench.llama_heads import heads_backward, heads_forward
from threadloom.stages.tools.bench.roofline import FLOAT, SHORT, attention_work


class LlamaBits16Bench(Bits16Bench):
    """The kernels of the Llama family in bfloat16 or float16; biases are left out."""

    def forward_parts(self) -> list[KernelCase]:
        """Return the kernels of the forward pass of a block."""
        w, p, a, g = self.weights, self.packed, self.acts, self.geometry
        calls, c, f, upcast = self.micro * g.layers, g.channels, g.hidden, a.thread.upcast
        attention = attention_work(self.sequences, g, backward=False, element=SHORT)
        return [
            KernelCase("RMS norm", 2 * calls, self.row_work(c, 2 * FLOAT + 2 * SHORT, 6, FLOAT), partial(
                rmsnorm_forward,
                a.x, w.norm1_weight[0], self.constants.epsilon, w.attn_proj_bias[0], self.kept(), a.h,
            ), FORWARD, self.reset_x),
            KernelCase("qkv", calls, self.product(g.qkv_width, c, SHORT), partial(
                linear_forward, a.h, p.qkv[0], self.adapter("qkv"), w.qkv_bias[0], a.qkv[0], upcast
            ), FORWARD),
            *heads_forward(self, a, SHORT),
            KernelCase("attention", calls, attention, partial(
                attention_forward, self.attention_arrays(), self.sequences, self.heads, a.thread.attention
            ), FORWARD),
            KernelCase("attn_proj", calls, self.product(c, g.attn_width, FLOAT, adds=True), partial(
                linear_residual_forward, a.attn[0], p.attn_proj[0], self.adapter("attn_proj"), a.x, upcast
            ), FORWARD, self.reset_x),
            KernelCase("gate_up", calls, self.product(2 * f, c, SHORT), partial(
                linear_forward, a.h, p.gate_up[0], self.adapter("gate_up"), w.gate_up_bias[0], a.gate_up[0], upcast
            ), FORWARD),
            KernelCase("SwiGLU", calls, self.row_work(f, 3 * SHORT, 15),
                 partial(swiglu_forward, a.gate_up[0], a.gated), FORWARD),
            KernelCase("down", calls, self.product(c, f, FLOAT, adds=True), partial(
                linear_residual_forward, a.gated, p.down[0], self.adapter("down"), a.x, upcast
            ), FORWARD, self.reset_x),
        ]  # fmt: skip

    def linear_arrays(self) -> dict[str, LinearArrays]:
        """Return linear layer → the arrays of its backward pass."""
        a, s = self.acts, self.s
        return {
            "qkv": LinearArrays(a.normed1[0], s.d_qkv, s.dh),
            "attn_proj": LinearArrays(a.attn[0], s.dx16, s.d_attn),
            "gate_up": LinearArrays(a.normed2[0], s.d_gate_up, s.dh),
            "down": LinearArrays(s.gated, s.dx16, s.d_gated),
        }

    def backward_passes(self) -> list[KernelCase]:
        """Return the kernels of the backward pass of a block that are no GEMMs."""
        w, a, d, g, s = self.weights, self.acts, self.grads, self.geometry, self.s
        calls = self.micro * g.layers
        attention = attention_work(self.sequences, g, backward=True, element=SHORT)
        return [
            KernelCase("RMS norm transposed", 2 * calls, self.row_work(g.channels, 2 * SHORT, 1), partial(
                rmsnorm_apply_transposed, s.transposed[: g.channels], w.norm1_weight[0]
            ), BACKWARD),
            KernelCase("d_attention", calls, attention, partial(
                attention_backward,
                s.d_attn, self.attention_arrays(), self.sequences, self.heads, s.d_qkv, s.thread.attention,
            ), BACKWARD),
            *heads_backward(self, a, s.d_qkv, SHORT),
            KernelCase("d_SwiGLU", calls, self.row_work(g.hidden, 6 * SHORT, 25), partial(
                swiglu_backward, a.gate_up[0], s.d_gated, s.d_gate_up, s.gated
            ), BACKWARD),
            KernelCase("d_RMS norm", 2 * calls, self.row_work(g.channels, 3 * FLOAT + 2 * SHORT, 10, FLOAT), partial(
                rmsnorm_backward, s.dh, self.kept(), w.norm1_weight[0], s.dx, s.dx16,
                RmsNormGradients(d.norm1_weight[0], d.attn_proj_bias[0]), True,
            ), BACKWARD, self.reset_dx),
        ]  # fmt: skip
