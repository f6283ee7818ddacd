"""Every kernel of an update alone on one core, on arrays of the sizes that a configuration gives it.

A kernel's arrays are those of one micro-batch, called again and again: what fits a cache stays in it, as it does when
the kernel before has just written it. Python enters each call, which costs one of a few microseconds.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

import kernels
from kernels import AdamWStep
from pipeline import Arena, LanePlan, Lanes
from stages.bench_roofline import FLOAT, KernelTime, Peaks, Work, attention_work, floor_of, gemm_work, total
from stages.config import Config, micro_batches
from stages.memory import Bank, FloatSlot, allocate_scratch, as_weights
from stages.parameters import decayed_elements, initialise, parameter_shapes
from stages.reducer import Gradient

LEAST_CALLS = 5
STEP = AdamWStep(1e-3, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 1.0)
WHOLES = ("forward blocks", "head", "backward blocks", "reduce", "AdamW")


@dataclass(frozen=True)
class Case:
    """One kernel: how it is called, how often in an update, and what it must do."""

    name: str
    calls: int
    work: Work
    call: Callable[[], object]
    part_of: str | None = None
    prepare: Callable[[], object] | None = None
    """Puts back what the call destroys, without being timed."""


class Bench:
    """The memory of one micro-batch and one update, and the kernels on it."""

    def __init__(self, config: Config) -> None:
        """`config` is resolved; enter `numerics(config)` around the calls."""
        self.config = config
        self.geometry = config.model.geometry()
        self.sequences = config.micro_batch or 1
        self.rows = self.sequences * self.geometry.context
        g = self.geometry
        bank = Bank(g)
        initialise(bank.arena, g, config.seed)
        self.flat = bank.arena.flat
        self.weights = bank.weights
        self.slot = FloatSlot.allocate(g, self.sequences)
        random = np.random.default_rng(7)
        self.slot.ids[:] = random.integers(0, g.vocabulary, self.rows)
        self.slot.targets[:] = random.integers(0, g.vocabulary, self.rows)
        self.lanes = Lanes(parameter_shapes(g), LanePlan(config.lanes or 1, micro_batches(config)))
        self.gradient = Gradient(self.lanes, config.delay)
        self.grads = as_weights(self.lanes.arenas[0])
        self.scratch = allocate_scratch(g, self.sequences)
        self.m, self.v = Arena(parameter_shapes(g)), Arena(parameter_shapes(g))
        self._run_once()
        self._dx = self.scratch.dx.copy()
        self._d_fc = np.ascontiguousarray(random.standard_normal(self.scratch.d_fc.shape, dtype=np.float32))
        self._logits = random.standard_normal(self.scratch.logits.shape, dtype=np.float32)

    def _run_once(self) -> float:
        """Fill every array with what training puts there; returns the micro-batch's loss."""
        g, slot = self.geometry, self.slot
        kernels.embedding_forward(self.weights.wte, self.weights.wpe, slot.ids, g.context, slot.activations.x[0])
        kernels.blocks_forward(self.weights, slot.activations, self.sequences, g.heads)
        scale = 1.0 / self.rows
        x_final = slot.activations.x[-1]
        loss = kernels.head_backward(self.weights, x_final, slot.targets, scale, self.grads, self.scratch, False)
        return float(loss) / self.rows

    def cases(self) -> list[Case]:
        """Return all kernels, each whole before its parts."""
        return [*self._blocks_forward(), *self._head(), *self._blocks_backward(), *self._streams()]

    def _linears(self) -> list[tuple[str, int, int]]:
        c, f = self.geometry.channels, self.geometry.hidden
        return [("qkv", c, 3 * c), ("attn_proj", c, c), ("fc", c, f), ("mlp_proj", f, c)]

    def _micro(self) -> int:
        return micro_batches(self.config)

    def _row_work(self, width: int, arrays: int, flops: int) -> Work:
        """The work of an element-wise pass over so many arrays of rows, with about so many operations an element."""
        return Work(float(flops * self.rows * width), float(FLOAT * arrays * self.rows * width))

    def _blocks_forward(self) -> list[Case]:
        w, a, g, r = self.weights, self.slot.activations, self.geometry, self.rows
        micro, calls, whole = self._micro(), self._micro() * g.layers, WHOLES[0]
        embedding = Case(
            "embedding", micro, self._row_work(g.channels, 3, 1),
            partial(kernels.embedding_forward, w.wte, w.wpe, self.slot.ids, g.context, a.x[0]),
        )  # fmt: skip
        linears = {name: gemm_work(r, outputs, inputs) for name, inputs, outputs in self._linears()}
        # The residual that the projections add is one more array to read.
        for name in ("attn_proj", "mlp_proj"):
            work = linears[name]
            linears[name] = Work(work.flops, work.bytes + FLOAT * r * g.channels)
        attention = attention_work(self.sequences, g.context, g.channels, backward=False)
        norm, gelu = self._row_work(g.channels, 2, 8), self._row_work(g.hidden, 2, 20)
        parts = [
            Case("LayerNorm", 2 * calls, norm, partial(
                kernels.layernorm_forward, a.x[0], w.ln1_weight[0], w.ln1_bias[0], a.h, a.ln1_mean[0], a.ln1_rstd[0]
            ), whole),
            Case("qkv", calls, linears["qkv"], partial(
                kernels.linear_forward, a.h, w.qkv_weight[0], w.qkv_bias[0], a.qkv[0]
            ), whole),
            Case("attention", calls, attention, partial(
                kernels.attention_forward, a.qkv[0], self.sequences, g.heads, a.attn[0], a.attn_lse[0], a.scores
            ), whole),
            Case("attn_proj", calls, linears["attn_proj"], partial(
                kernels.linear_residual_forward,
                a.attn[0], w.attn_proj_weight[0], w.attn_proj_bias[0], a.x[0], a.x_mid[0],
            ), whole),
            Case("fc", calls, linears["fc"], partial(
                kernels.linear_forward, a.h, w.fc_weight[0], w.fc_bias[0], a.fc[0]
            ), whole),
            Case("GELU", calls, gelu, partial(kernels.gelu_forward, a.fc[0], a.gelu), whole),
            Case("mlp_proj", calls, linears["mlp_proj"], partial(
                kernels.linear_residual_forward,
                a.gelu, w.mlp_proj_weight[0], w.mlp_proj_bias[0], a.x_mid[0], a.x[1],
            ), whole),
        ]  # fmt: skip
        # Beyond the parts' sum, nothing: a whole's floor is what its parts would take one after another.
        work = total([(case.work, case.calls // micro) for case in parts])
        call = partial(kernels.blocks_forward, w, a, self.sequences, g.heads)
        return [embedding, Case(whole, micro, work, call), *parts]

    def _head(self) -> list[Case]:
        w, g, s, r = self.weights, self.geometry, self.scratch, self.rows
        a, slot, micro, whole = self.slot.activations, self.slot, self._micro(), WHOLES[1]
        chunk = s.logits.shape[0]
        chunks = -(-r // chunk)
        v, c = g.vocabulary, g.channels
        h, targets = s.h[:chunk], slot.targets[:chunk]
        softmax = Work(20.0 * chunk * v, 2.0 * FLOAT * chunk * v)
        # float64 times float32 would make a strided, slower call: the scale is a Python float, as in training.
        parts = [
            Case("logits", micro * chunks, gemm_work(chunk, v, c),
                 partial(kernels.gemm, h, w.wte, s.logits, False, True, 1.0, 0.0), whole),
            Case("cross-entropy", micro * chunks, softmax,
                 partial(kernels.cross_entropy_backward, s.logits, targets, 1.0 / r), whole,
                 partial(np.copyto, s.logits, self._logits)),
            Case("d_wte", micro * chunks, gemm_work(v, c, chunk, adds=True),
                 partial(kernels.gemm, s.logits, h, self.grads.wte, True, False, 1.0, 1.0), whole),
            Case("d_head input", micro * chunks, gemm_work(chunk, c, v),
                 partial(kernels.gemm, s.logits, w.wte, s.dh[:chunk], False, False, 1.0, 0.0), whole),
        ]  # fmt: skip
        norms = (self._row_work(c, 2, 8), 1), (self._row_work(c, 3, 14), 1)
        # The logits are the head's own business: its floor need not move them.
        kept = FLOAT * float(2 * r * c + r + 3 * v * c)
        work = Work(total([*((case.work, chunks) for case in parts), *norms]).flops, kept)
        call = partial(
            kernels.head_backward, w, a.x[-1], slot.targets, 1.0 / r, self.grads, s, True,
        )  # fmt: skip
        return [Case(whole, micro, work, call), *parts]

    def _blocks_backward(self) -> list[Case]:
        w, g, s, r = self.weights, self.geometry, self.scratch, self.rows
        a, d, micro, whole = self.slot.activations, self.grads, self._micro(), WHOLES[2]
        calls = micro * g.layers
        c, f = g.channels, g.hidden
        into = {"qkv": s.d_qkv, "attn_proj": s.dx, "fc": s.d_fc, "mlp_proj": s.dx}
        given = {"qkv": s.h, "attn_proj": a.attn[0], "fc": s.h, "mlp_proj": s.gelu}
        back = {"qkv": s.dh, "attn_proj": s.d_attn, "fc": s.dh, "mlp_proj": s.d_fc}
        parts = []
        for name, inputs, outputs in self._linears():
            weight, gradient = getattr(w, f"{name}_weight")[0], getattr(d, f"{name}_weight")[0]
            parts += [
                Case(f"d_{name} weight", calls, gemm_work(inputs, outputs, r, adds=True),
                     partial(kernels.linear_backward_weight, given[name], into[name], gradient, True), whole),
                Case(f"d_{name} input", calls, gemm_work(r, inputs, outputs),
                     partial(kernels.linear_backward_input, into[name], weight, back[name]), whole),
            ]  # fmt: skip
        bias = Work(float(r * (5 * c + f)), FLOAT * float(r * (5 * c + f)))

        def biases() -> None:
            kernels.linear_backward_bias(s.dx, d.mlp_proj_bias[0], True)
            kernels.linear_backward_bias(s.d_fc, d.fc_bias[0], True)
            kernels.linear_backward_bias(s.dx, d.attn_proj_bias[0], True)
            kernels.linear_backward_bias(s.d_qkv, d.qkv_bias[0], True)

        attention = attention_work(self.sequences, g.context, c, backward=True)
        reset_fc, reset_dx = partial(np.copyto, s.d_fc, self._d_fc), partial(np.copyto, s.dx, self._dx)
        mean, rstd = a.ln1_mean[0], a.ln1_rstd[0]
        parts += [
            Case("d_biases (4)", calls, bias, biases, whole),
            Case("d_attention", calls, attention, partial(
                kernels.attention_backward, s.d_attn, a.attn[0], a.qkv[0], a.attn_lse[0], self.sequences, g.heads,
                s.d_qkv, s.scores, s.d_scores,
            ), whole),
            Case("d_GELU", calls, self._row_work(f, 4, 30),
                 partial(kernels.gelu_backward, a.fc[0], s.d_fc, s.gelu), whole, reset_fc),
            Case("LayerNorm again", 2 * calls, self._row_work(c, 2, 4), partial(
                kernels.layernorm_apply, a.x[0], w.ln1_weight[0], w.ln1_bias[0], mean, rstd, s.h
            ), whole),
            Case("d_LayerNorm", 2 * calls, self._row_work(c, 4, 14), partial(
                kernels.layernorm_backward,
                s.dh, a.x[0], w.ln1_weight[0], mean, rstd, s.dx, d.ln1_weight[0], d.ln1_bias[0], True, True,
            ), whole, reset_dx),
        ]  # fmt: skip
        work = total([(case.work, case.calls // micro) for case in parts])
        call = partial(kernels.blocks_backward, w, a, d, s, self.sequences, g.heads, True)
        embedding = Case(
            "d_embedding", micro, Work(2.0 * r * c, FLOAT * 5.0 * r * c),
            partial(kernels.embedding_backward, self.slot.ids, s.dx, g.context, d.wte, d.wpe, True), None, reset_dx,
        )  # fmt: skip
        return [Case(whole, micro, work, call, None, reset_dx), *parts, embedding]

    def _streams(self) -> list[Case]:
        lanes, flat = self.lanes.flat, self.gradient.flat
        count, elements = lanes.shape
        chunks = -(-elements // kernels.CHUNK)
        decayed = decayed_elements(self.geometry)
        reduced = Work(float((count + 1) * elements), reduce_bytes(elements, count))
        updated = Work(16.0 * elements, adamw_bytes(elements))
        return [
            Case(WHOLES[3], 1, reduced, partial(kernels.sum_lanes, lanes, flat, self.gradient.squares, 0, chunks)),
            Case(WHOLES[4], 1, updated, partial(
                kernels.adamw_update, self.flat, self.flat, flat, self.m.flat, self.v.flat, decayed, STEP
            ), None, partial(np.multiply, flat, np.float32(0.5), out=flat)),
        ]  # fmt: skip


def reduce_bytes(elements: int, lanes: int) -> float:
    """Return what the sum of the lanes must move: every lane read, the sum written."""
    return FLOAT * float((lanes + 1) * elements)


def adamw_bytes(elements: int) -> float:
    """Return what AdamW must move: weights, gradient and both moments read, weights and moments written."""
    return FLOAT * 7.0 * elements


def time_case(case: Case, peaks: Peaks, seconds: float) -> KernelTime:
    """Call a kernel for about so many seconds, at least a few times, and put it beside its floor."""
    taken: list[float] = []
    _once(case)
    end = time.perf_counter() + seconds
    while len(taken) < LEAST_CALLS or time.perf_counter() < end:
        taken.append(_once(case))
    low, middle, high = statistics.quantiles(taken, n=4)
    floor, bound = floor_of(case.work, peaks)
    return KernelTime(case.name, case.calls, case.work, middle, (low, high), floor, bound, case.part_of)


def _once(case: Case) -> float:
    if case.prepare is not None:
        case.prepare()
    begin = time.perf_counter()
    case.call()
    return time.perf_counter() - begin
