"""The passes over queries and keys of a Llama before and after attention, the same kernels in every number format."""

from functools import partial
from typing import Any

from threadloom.kernels.common import (
    HeadNormWeights,
    head_norm_backward,
    head_norm_forward,
    rotary_backward,
    rotary_forward,
)
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD, KernelBench
from threadloom.stages.tools.bench.kernel_case import KernelCase, restorer


def heads_forward(bench: KernelBench, acts: Any, element: int) -> list[KernelCase]:
    """Return the passes before attention, in place in ``acts.qkv``, whose elements have `element` bytes."""
    w, c, width, size = bench.weights, bench.constants, _width(bench), bench.head_size
    reset = restorer(acts.qkv[0])
    rotary = KernelCase(
        "rotary positions", bench.micro * int(c.rotary.sum()), bench.row_work(width, 2 * element, 3, in_place=element),
        partial(rotary_forward, acts.qkv[0], bench.heads, size, c.cos, c.sin, bench.sequences, acts.starts), FORWARD,
        reset,
    )  # fmt: skip
    if not acts.qk_raw.size:
        return [rotary]
    norms = HeadNormWeights(w.q_norm_weight[0], w.k_norm_weight[0])
    norm = KernelCase(
        "norm of heads", bench.micro * bench.geometry.layers, bench.row_work(width, 3 * element, 4, in_place=element),
        partial(head_norm_forward, acts.qkv[0], acts.qk_raw[0], norms, c.epsilon, bench.heads, size), FORWARD, reset,
    )  # fmt: skip
    return [norm, rotary]


def heads_backward(bench: KernelBench, acts: Any, d_qkv: Any, element: int) -> list[KernelCase]:
    """Return the passes after attention's backward pass, in place in `d_qkv`, whose elements have `element` bytes."""
    w, d, c, width, size = bench.weights, bench.grads, bench.constants, _width(bench), bench.head_size
    reset = restorer(d_qkv)
    rotary = KernelCase(
        "d_rotary", bench.micro * int(c.rotary.sum()), bench.row_work(width, 2 * element, 3, in_place=element),
        partial(rotary_backward, d_qkv, bench.heads, size, c.cos, c.sin, bench.sequences, acts.starts), BACKWARD, reset,
    )  # fmt: skip
    if not acts.qk_raw.size:
        return [rotary]
    norms = HeadNormWeights(w.q_norm_weight[0], w.k_norm_weight[0])
    d_norms = HeadNormWeights(d.q_norm_weight[0], d.k_norm_weight[0])
    norm = KernelCase(
        "d_norm of heads", bench.micro * bench.geometry.layers,
        bench.row_work(width, 3 * element, 10, in_place=element),
        partial(head_norm_backward, d_qkv, acts.qk_raw[0], norms, c.epsilon, bench.heads, size, d_norms, True),
        BACKWARD, reset,
    )  # fmt: skip
    return [rotary, norm]


def _width(bench: KernelBench) -> int:
    """Return the columns of queries and keys together."""
    return bench.geometry.attn_width + bench.geometry.key_value_width
