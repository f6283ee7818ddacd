"""Every kernel of an update alone on one core, on arrays of the sizes that a configuration gives it.

A kernel's arrays are those of one micro-batch, called again and again: what fits a cache stays in it, as it does when
the kernel before has just written it. Python enters each call, which costs one of a few microseconds.

Here is what every precision has: the memory of a micro-batch and of an update, the passes that stream through it, and
how a case is timed. The kernels of float32 are in `stages.tools.bench.kernels_float32`, those of 16 bits in
`stages.tools.bench.kernels_bits16`.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from threadloom import kernels
from threadloom.kernels import AdamWStep, Floats, single_writer
from threadloom.pipeline import LanePlan, Lanes
from threadloom.stages.config import Precision, ResolvedConfig
from threadloom.stages.memory import Bank, LossScaler, UpdateShard, as_weights
from threadloom.stages.models import Geometry, initialise, parameter_shapes
from threadloom.stages.step import Gradient, Moments, compute_for
from threadloom.stages.tools.bench.roofline import (
    FLOAT,
    SHORT,
    KernelTime,
    Peaks,
    Work,
    arithmetic_of,
    floor_of_steps,
    total,
)

LEAST_CALLS = 5
STEP = AdamWStep(1e-3, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 1.0)
FORWARD, HEAD, BACKWARD, REDUCE, ADAMW = "forward blocks", "head", "backward blocks", "reduce", "AdamW"
LOW = (Precision.BF16, Precision.FP16)

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One kernel: how it is called, how often in an update, and what it must do."""

    name: str
    calls: int
    work: Work
    call: Call
    part_of: str | None = None
    prepare: Call | None = None
    """Puts back what the call destroys, without being timed."""
    steps: tuple[tuple[Work, int], ...] = ()
    """What one call does one after another, and how often: its floor is the sum of theirs. Empty: it is one step."""


class KernelBench:
    """The memory of one micro-batch and one update in one precision; kernels on it are added by those who derive."""

    def __init__(self, config: ResolvedConfig) -> None:
        """`config` is resolved; enter `numerics(config)` around this and the calls."""
        self.config = config
        self.geometry = g = config.model.geometry()
        self.sequences = config.micro_batch
        self.rows = self.sequences * g.context
        self.micro = config.micro_batches
        self.compute = compute_for(config.precision, g, self.sequences)
        self.bank = Bank(g, self.compute.allocate_packed())
        initialise(self.bank.arena, g, config.seed)
        self.compute.pack_from_master(self.bank)
        self.weights = self.bank.weights
        self.random = np.random.default_rng(7)
        self.slot: Any = self.compute.allocate_slot()
        for ids in (self.slot.ids, self.slot.targets):
            ids[:] = self.random.integers(0, g.vocabulary, self.rows)
        self.lanes = Lanes(parameter_shapes(g), LanePlan(config.lanes, self.micro))
        self.gradient = Gradient(self.lanes, config.delay)
        self.grads = as_weights(self.lanes.arenas[0])
        self.scratch: Any = self.compute.allocate_scratch()
        self.scale = LossScaler(config.loss_scale).start(0).scale / self.rows  # of the loss, as in the first update
        self.compute.embed(self.bank, self.slot)
        self.compute.forward(self.bank, self.slot)
        self.ticket = single_writer()
        self.compute.backward(self.bank, self.slot, self.scale, self.grads, self.scratch, False, self.ticket)

    def cases(self) -> list[Case]:
        """Return all kernels, each whole before its parts."""
        raise NotImplementedError

    def linears(self) -> list[tuple[str, int, int]]:
        """Return the linear layers of a block: name, inputs, outputs."""
        c, f = self.geometry.channels, self.geometry.hidden
        return [("qkv", c, 3 * c), ("attn_proj", c, c), ("fc", c, f), ("mlp_proj", f, c)]

    def row_work(self, width: int, number_bytes: int, flops: int, in_place: int = 0) -> Work:
        """The work of a pass over rows of so many numbers: bytes and operations for each of these.

        `in_place`: those of the bytes that are written where others of them were read.
        """
        numbers = self.rows * width
        held = float((number_bytes - in_place) * numbers) if in_place else 0.0
        return Work(float(flops * numbers), float(number_bytes * numbers), held=held)

    def whole(self, name: str, parts: Sequence[Case], call: Call, prepare: Call | None = None) -> list[Case]:
        """Return a whole and its parts: its floor is what they would take one after another, and nothing beyond."""
        steps = tuple((case.work, case.calls // self.micro) for case in parts)
        return [Case(name, self.micro, total(steps), call, None, prepare, steps), *parts]

    def embedding(self, number_bytes: int) -> Case:
        """Return the gathering of the embeddings, whose form in memory has so many bytes a number."""
        tokens, positions = self._gathered()
        moved = number_bytes * tokens + FLOAT * (positions + self.rows)
        work = Work(float(self.rows * self.geometry.channels), float(moved * self.geometry.channels))
        return Case("embedding", self.micro, work, partial(self.compute.embed, self.bank, self.slot))

    def d_embedding(self, dx: Floats) -> Case:
        """Return the scattering of the embeddings' gradient, which is float32 in every precision."""
        d, g = self.grads, self.geometry
        added = sum(self._gathered())
        moved, held = (float(FLOAT * g.channels * (self.rows + times * added)) for times in (2, 1))
        work = Work(2.0 * self.rows * g.channels, moved, held=held)
        call = partial(kernels.embedding_backward, self.slot.ids, dx, g.context, d.wte, d.wpe, True)
        return Case("d_embedding", self.micro, work, call)

    def _gathered(self) -> tuple[int, int]:
        """Return how many rows of the two tables a micro-batch meets: each moves once, however often it is met."""
        return np.unique(self.slot.ids).size, self.geometry.context

    def streams(self) -> list[Case]:
        """Return the passes over all parameters: the sum of the lanes, and AdamW with the forms that it leaves."""
        lanes, flat = self.lanes.flat, self.gradient.flat
        count, elements = lanes.shape
        chunks = -(-elements // kernels.CHUNK)
        sums = 0 if self.gradient.in_lane else 1  # arrays of its own that the sum is written to
        held = FLOAT * float((count + sums) * elements)
        reduced = Work(float((count + 1) * elements), reduce_bytes(elements, count), held=held)
        moved = update_bytes(self.geometry, elements, self.config.precision)
        updated = Work(16.0 * elements, moved, held=moved - FLOAT * 3.0 * elements)  # three are changed in place
        update = self.compute.make_update(self.gradient, Moments(self.geometry), 1)
        shard = UpdateShard(0, 0, (0, elements), self.bank, self.bank, STEP, 0.0, 0.0)
        return [
            Case(REDUCE, 1, reduced, partial(kernels.sum_lanes, lanes, flat, self.gradient.squares, 0, chunks)),
            Case(ADAMW, 1, updated, partial(update, shard)),
        ]


def kernel_bench(config: ResolvedConfig) -> KernelBench:
    """Return the kernels of a resolved configuration, in its precision."""
    if config.precision in LOW:
        from threadloom.stages.tools.bench.kernels_bits16 import LowBench

        return LowBench(config)
    from threadloom.stages.tools.bench.kernels_float32 import FloatBench

    return FloatBench(config)


def reduce_bytes(elements: int, lanes: int) -> float:
    """Return what the sum of the lanes must move: every lane read, the sum written."""
    return FLOAT * float((lanes + 1) * elements)


def adamw_bytes(elements: int) -> float:
    """Return what AdamW must move: weights, gradient and both moments read, weights and moments written."""
    return FLOAT * 7.0 * elements


def update_bytes(geometry: Geometry, elements: int, precision: Precision) -> float:
    """Return what AdamW must move in a precision: in 16 bits it also writes the matrices' forms, two for bfloat16."""
    if precision not in LOW:
        return adamw_bytes(elements)
    from threadloom.stages.memory.bits16 import MATRIX_FORMS

    shapes = parameter_shapes(geometry)
    forms = 2 if precision is Precision.BF16 else 1
    return adamw_bytes(elements) + forms * SHORT * float(sum(prod(shapes[name]) for name in MATRIX_FORMS))


def time_case(case: Case, peaks: Peaks, seconds: float, precision: Precision = Precision.FLOAT32) -> KernelTime:
    """Call a kernel for about so many seconds, at least a few times, and put it beside its floor."""
    taken: list[float] = []
    _once(case)
    end = time.perf_counter() + seconds
    while len(taken) < LEAST_CALLS or time.perf_counter() < end:
        taken.append(_once(case))
    low, middle, high = statistics.quantiles(taken, n=4)
    floor, bound = floor_of_steps(case.steps or ((case.work, 1),), peaks, precision)
    arithmetic = arithmetic_of(case.work, peaks, precision)
    return KernelTime(case.name, case.calls, case.work, middle, (low, high), floor, bound, case.part_of, arithmetic)


def _once(case: Case) -> float:
    if case.prepare is not None:
        case.prepare()
    begin = time.perf_counter()
    case.call()
    return time.perf_counter() - begin
