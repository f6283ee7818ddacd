"""The kernels of a GPT-2's blocks in 16 bits."""

from functools import partial

from threadloom.kernels.bits16 import (
    LayerNormGradients,
    attention_backward,
    attention_forward,
    gelu_backward,
    layernorm_apply_transposed,
    layernorm_backward,
    layernorm_forward,
    linear_backward_bias,
    linear_forward,
    linear_gelu_forward,
    linear_residual_forward,
)
from threadloom.kernels.common import Affine
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD
from threadloom.stages.tools.bench.kernel_case import KernelCase, restorer
from threadloom.stages.tools.bench.kernels_bits16 import Bits16Bench, LinearArrays
from threadloom.stages.tools.bench.roofline import FLOAT, SHORT, attention_work, total


class Gpt2Bits16Bench(Bits16Bench):
    """The kernels of GPT-2 in bfloat16 or float16."""

    def __init__(self, config: ResolvedConfig) -> None:
        """Allocate the memory; the caller keeps `gemm_settings(config)` active here and during the calls."""
        super().__init__(config)
        self._reset_d_fc = restorer(self.s.d_fc)

    def forward_parts(self) -> list[KernelCase]:
        """Return the kernels of the forward pass of a block."""
        w, p, a, g = self.weights, self.packed, self.acts, self.geometry
        calls, c, hidden, upcast = self.micro * g.layers, g.channels, g.hidden, a.thread.upcast
        attention = attention_work(self.sequences, g, backward=False, element=SHORT)
        gelu = self.row_work(hidden, SHORT, 20)  # its input and output are counted as results of the GEMM
        return [
            # The stream is read, and written with the next bias added; the normalised rows and the output are written.
            KernelCase("LayerNorm", 2 * calls, self.row_work(c, 2 * FLOAT + 2 * SHORT, 10, FLOAT), partial(
                layernorm_forward,
                a.x, Affine(w.ln1_weight[0], w.ln1_bias[0]), w.attn_proj_bias[0], self.kept(), a.h,
            ), FORWARD, self.reset_x),
            KernelCase("qkv", calls, self.product(3 * c, c, SHORT), partial(
                linear_forward, a.h, p.qkv[0], self.adapter("qkv"), w.qkv_bias[0], a.qkv[0], upcast
            ), FORWARD),
            KernelCase("attention", calls, attention, partial(
                attention_forward, self.attention_arrays(), self.sequences, self.heads, a.thread.attention
            ), FORWARD),
            KernelCase("attn_proj", calls, self.product(c, c, FLOAT, adds=True), partial(
                linear_residual_forward, a.attn[0], p.attn_proj[0], self.adapter("attn_proj"), a.x, upcast
            ), FORWARD, self.reset_x),
            KernelCase("fc + GELU", calls, total([(self.product(hidden, c, SHORT), 1), (gelu, 1)]), partial(
                linear_gelu_forward, a.h, p.fc[0], self.adapter("fc"), w.fc_bias[0], a.fc[0], a.gelu, upcast
            ), FORWARD),
            KernelCase("mlp_proj", calls, self.product(c, hidden, FLOAT, adds=True), partial(
                linear_residual_forward, a.gelu, p.mlp_proj[0], self.adapter("mlp_proj"), a.x, upcast
            ), FORWARD, self.reset_x),
        ]  # fmt: skip

    def linear_arrays(self) -> dict[str, LinearArrays]:
        """Return linear layer → the arrays of its backward pass."""
        a, s = self.acts, self.s
        return {
            "qkv": LinearArrays(a.normed1[0], s.d_qkv, s.dh),
            "attn_proj": LinearArrays(a.attn[0], s.dx16, s.d_attn),
            "fc": LinearArrays(a.normed2[0], s.d_fc, s.dh),
            "mlp_proj": LinearArrays(s.gelu, s.dx16, s.d_fc),
        }

    def backward_passes(self) -> list[KernelCase]:
        """Return the kernels of the backward pass of a block that are no GEMMs."""
        w, a, g, s = self.weights, self.acts, self.geometry, self.s
        calls, c = self.micro * g.layers, g.channels
        attention = attention_work(self.sequences, g, backward=True, element=SHORT)
        apply = partial(layernorm_apply_transposed, s.transposed[:c], Affine(w.ln1_weight[0], w.ln1_bias[0]))
        return [
            KernelCase("LayerNorm transposed", 2 * calls, self.row_work(c, 2 * SHORT, 2), apply, BACKWARD),
            KernelCase("d_attention", calls, attention, partial(
                attention_backward,
                s.d_attn, self.attention_arrays(), self.sequences, self.heads, s.d_qkv, s.thread.attention,
            ), BACKWARD),
            KernelCase("d_qkv bias", calls, self.row_work(3 * c, SHORT, 1),
                 partial(linear_backward_bias, s.d_qkv, self.d_vector("qkv_bias"), True), BACKWARD),
            KernelCase("d_GELU", calls, self.row_work(g.hidden, 4 * SHORT, 31, in_place=SHORT),
                 partial(gelu_backward, a.fc[0], s.d_fc, s.gelu, self.d_vector("fc_bias"), True), BACKWARD,
                 self._reset_d_fc),
            KernelCase("d_LayerNorm", 2 * calls, self.row_work(c, 3 * FLOAT + 2 * SHORT, 16, in_place=FLOAT), partial(
                layernorm_backward, s.dh, self.kept(), w.ln1_weight[0], s.dx, s.dx16,
                LayerNormGradients(*map(self.d_vector, ("ln1_weight", "ln1_bias", "attn_proj_bias"))), True,
            ), BACKWARD, self.reset_dx),
        ]  # fmt: skip
