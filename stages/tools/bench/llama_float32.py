"""The kernels of a Llama's blocks in float32."""

from functools import partial

from threadloom import kernels
from threadloom.kernels import Floats
from threadloom.kernels.common import swiglu_backward, swiglu_forward
from threadloom.kernels.float32 import rmsnorm_apply, rmsnorm_backward, rmsnorm_forward
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD
from threadloom.stages.tools.bench.kernel_case import KernelCase
from threadloom.stages.tools.bench.kernels_float32 import Float32Bench
from threadloom.stages.tools.bench.llama_heads import heads_backward, heads_forward
from threadloom.stages.tools.bench.roofline import FLOAT, attention_work


class LlamaFloat32Bench(Float32Bench):
    """The kernels of the Llama family in float32; biases are left out."""

    def forward_parts(self) -> list[KernelCase]:
        """Return the kernels of the forward pass of a block."""
        w, a, g, epsilon = self.weights, self.acts, self.geometry, self.constants.epsilon
        calls, products = self.micro * g.layers, self.linear_works(("attn_proj", "down"))
        attention = attention_work(self.sequences, g, backward=False)
        return [
            KernelCase("RMS norm", 2 * calls, self.row_work(g.channels, 2 * FLOAT, 4), partial(
                rmsnorm_forward, a.x[0], w.norm1_weight[0], epsilon, a.h, a.rstd1[0]
            ), FORWARD),
            KernelCase("qkv", calls, products["qkv"], partial(
                kernels.linear_forward, a.h, w.qkv_weight[0], w.qkv_bias[0], a.qkv[0]
            ), FORWARD),
            *heads_forward(self, a, FLOAT),
            KernelCase("attention", calls, attention, partial(
                kernels.attention_forward, self.attention_arrays(), self.sequences, self.heads, a.scores
            ), FORWARD),
            KernelCase("attn_proj", calls, products["attn_proj"], partial(
                kernels.linear_residual_forward,
                a.attn[0], w.attn_proj_weight[0], w.attn_proj_bias[0], a.x[0], a.x_mid[0],
            ), FORWARD),
            KernelCase("gate_up", calls, products["gate_up"], partial(
                kernels.linear_forward, a.h, w.gate_up_weight[0], w.gate_up_bias[0], a.gate_up[0]
            ), FORWARD),
            KernelCase("SwiGLU", calls, self.row_work(g.hidden, 3 * FLOAT, 15),
                 partial(swiglu_forward, a.gate_up[0], a.gated), FORWARD),
            KernelCase("down", calls, products["down"], partial(
                kernels.linear_residual_forward,
                a.gated, w.down_weight[0], w.down_bias[0], a.x_mid[0], a.x[1],
            ), FORWARD),
        ]  # fmt: skip

    def linear_arrays(self) -> dict[str, tuple[Floats, Floats, Floats]]:
        """Return linear layer → its input, the gradient of its output, the array for the gradient of its input."""
        s = self.s
        return {
            "qkv": (s.h, s.d_qkv, s.dh),
            "attn_proj": (self.acts.attn[0], s.dx, s.d_attn),
            "gate_up": (s.h, s.d_gate_up, s.dh),
            "down": (s.gated, s.dx, s.d_gated),
        }

    def backward_passes(self) -> list[KernelCase]:
        """Return the kernels of the backward pass of a block that are no GEMMs."""
        w, a, d, g, s = self.weights, self.acts, self.grads, self.geometry, self.s
        calls = self.micro * g.layers
        attention = attention_work(self.sequences, g, backward=True)
        return [
            KernelCase("d_attention", calls, attention, partial(
                kernels.attention_backward,
                s.d_attn, self.attention_arrays(), self.sequences, self.heads, s.d_qkv, s.scores,
            ), BACKWARD),
            *heads_backward(self, a, s.d_qkv, FLOAT),
            KernelCase("d_SwiGLU", calls, self.row_work(g.hidden, 6 * FLOAT, 25), partial(
                swiglu_backward, a.gate_up[0], s.d_gated, s.d_gate_up, s.gated
            ), BACKWARD),
            KernelCase("RMS norm recomputed", 2 * calls, self.row_work(g.channels, 2 * FLOAT, 2), partial(
                rmsnorm_apply, a.x[0], w.norm1_weight[0], a.rstd1[0], s.h
            ), BACKWARD),
            KernelCase("d_RMS norm", 2 * calls, self.row_work(g.channels, 4 * FLOAT, 10, in_place=FLOAT), partial(
                rmsnorm_backward, s.dh, a.x[0], w.norm1_weight[0], a.rstd1[0], s.dx, d.norm1_weight[0], True,
            ), BACKWARD, self.reset_dx),
        ]  # fmt: skip
