"""The kernels of a GPT-2's blocks in float32."""

from functools import partial

import numpy as np

from threadloom import kernels
from threadloom.kernels import Affine, Floats, RowStatistics
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD
from threadloom.stages.tools.bench.kernel_case import KernelCase
from threadloom.stages.tools.bench.kernels_float32 import Float32Bench
from threadloom.stages.tools.bench.roofline import FLOAT, KernelWork, attention_work


class Gpt2Float32Bench(Float32Bench):
    """The kernels of GPT-2 in float32."""

    def __init__(self, config: ResolvedConfig) -> None:
        """Allocate the memory; the caller keeps `gemm_settings(config)` active here and during the calls."""
        super().__init__(config)
        self._d_fc = np.ascontiguousarray(self.random.standard_normal(self.s.d_fc.shape, dtype=np.float32))

    def forward_parts(self) -> list[KernelCase]:
        """Return the kernels of the forward pass of a block."""
        w, a, g = self.weights, self.acts, self.geometry
        calls, products = self.micro * g.layers, self.linear_works(("attn_proj", "mlp_proj"))
        attention = attention_work(self.sequences, g, backward=False)
        norm, gelu = self.row_work(g.channels, 2 * FLOAT, 8), self.row_work(g.hidden, 2 * FLOAT, 20)
        return [
            KernelCase("LayerNorm", 2 * calls, norm, partial(
                kernels.layernorm_forward, a.x[0], Affine(w.ln1_weight[0], w.ln1_bias[0]), a.h, self._statistics()
            ), FORWARD),
            KernelCase("qkv", calls, products["qkv"], partial(
                kernels.linear_forward, a.h, w.qkv_weight[0], w.qkv_bias[0], a.qkv[0]
            ), FORWARD),
            KernelCase("attention", calls, attention, partial(
                kernels.attention_forward, self.attention_arrays(), self.sequences, self.heads, a.scores
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

    def linear_arrays(self) -> dict[str, tuple[Floats, Floats, Floats]]:
        """Return linear layer → its input, the gradient of its output, the array for the gradient of its input."""
        s = self.s
        return {
            "qkv": (s.h, s.d_qkv, s.dh),
            "attn_proj": (self.acts.attn[0], s.dx, s.d_attn),
            "fc": (s.h, s.d_fc, s.dh),
            "mlp_proj": (s.gelu, s.dx, s.d_fc),
        }

    def _statistics(self) -> RowStatistics:
        return RowStatistics(self.acts.ln1_mean[0], self.acts.ln1_rstd[0])

    def backward_passes(self) -> list[KernelCase]:
        """Return the kernels of the backward pass of a block that are no GEMMs."""
        w, a, d, g, s, r = self.weights, self.acts, self.grads, self.geometry, self.s, self.rows
        d_ln1 = Affine(self.d_vector("ln1_weight"), self.d_vector("ln1_bias"))
        calls = self.micro * g.layers
        c, f = g.channels, g.hidden
        bias = KernelWork(float(r * (5 * c + f)), FLOAT * float(r * (5 * c + f)), held=FLOAT * float(r * (4 * c + f)))

        def biases() -> None:
            kernels.linear_backward_bias(s.dx, d.mlp_proj_bias[0], True)
            kernels.linear_backward_bias(s.d_fc, d.fc_bias[0], True)
            kernels.linear_backward_bias(s.dx, d.attn_proj_bias[0], True)
            kernels.linear_backward_bias(s.d_qkv, d.qkv_bias[0], True)

        attention = attention_work(self.sequences, g, backward=True)
        reset_fc = partial(np.copyto, s.d_fc, self._d_fc)
        return [
            KernelCase("d_biases (4)", calls, bias, biases, BACKWARD),
            KernelCase("d_attention", calls, attention, partial(
                kernels.attention_backward,
                s.d_attn, self.attention_arrays(), self.sequences, self.heads, s.d_qkv, s.scores,
            ), BACKWARD),
            KernelCase("d_GELU", calls, self.row_work(f, 4 * FLOAT, 30, in_place=FLOAT),
                 partial(kernels.gelu_backward, a.fc[0], s.d_fc, s.gelu), BACKWARD, reset_fc),
            KernelCase("LayerNorm recomputed", 2 * calls, self.row_work(c, 2 * FLOAT, 4), partial(
                kernels.layernorm_apply, a.x[0], Affine(w.ln1_weight[0], w.ln1_bias[0]), self._statistics(), s.h
            ), BACKWARD),
            KernelCase("d_LayerNorm", 2 * calls, self.row_work(c, 4 * FLOAT, 14, in_place=FLOAT), partial(
                kernels.layernorm_backward,
                s.dh, a.x[0], w.ln1_weight[0], self._statistics(), s.dx, d_ln1, True,
            ), BACKWARD, self.reset_dx),
        ]  # fmt: skip
