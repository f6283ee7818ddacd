"""Every kernel of an update, called alone on one core with arrays of the sizes that a configuration gives it.

The arrays are those of one micro-batch and are used again by every call, so that they stay in a cache if they fit one,
as they do in training when the previous kernel has just written them. Each call is made from Python, which adds about a
microsecond.

The gradients of frozen tensors are not computed and not listed. The products of adapters are parts of the forward and
backward pass of the blocks, without lines of their own.

`KernelBench` lists the kernels and has all that is the same in every precision: the memory of a micro-batch and of an
update, the embeddings, and the passes over all parameters. `kernels_float32` and `kernels_bits16` implement the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, ClassVar

import msgspec
import numpy as np

from threadloom import kernels
from threadloom.kernels import Floats, single_writer
from threadloom.pipeline import arena_size
from threadloom.stages.config import Precision, ResolvedConfig
from threadloom.stages.data import RandomTokens
from threadloom.stages.layouts import as_weights, head_counts, layout_of
from threadloom.stages.memory import BatchLoss, LossScaler, UpdateShard, adamw_bytes, reduction_bytes, rotated_parts
from threadloom.stages.models import Geometry, parameter_shapes
from threadloom.stages.step import rotated_stage
from threadloom.stages.tools.bench.kernel_case import Call, KernelCase
from threadloom.stages.tools.bench.roofline import FLOAT, SHORT, KernelWork, total
from threadloom.stages.training import Training

FORWARD, HEAD, BACKWARD, REDUCE, ADAMW = "forward blocks", "head", "backward blocks", "reduce", "AdamW"
BITS16 = (Precision.BF16, Precision.FP16)


class KernelBench(ABC):
    """The kernels of an update in one precision, and the memory of one micro-batch and one update for them."""

    EMBEDDING_BYTES: ClassVar[int]
    """Bytes per element of the embedding table that forward reads."""

    def __init__(self, config: ResolvedConfig) -> None:
        """Allocate the memory; the caller keeps `gemm_settings(config)` active here and during the calls."""
        # One micro-batch with all activations: a kernel that recomputes some is called as one that reads them.
        self.config = config = msgspec.structs.replace(config, slots=1, recompute=False)
        self.geometry = g = config.geometry()
        self.trained = parameter_shapes(g, config.frozen_tensors()).keys()
        """Names of the tensors whose gradients are computed."""
        self.layout = layout_of(g)
        self.constants = self.layout.constants(g)
        self.heads = head_counts(g)
        self.head_size = g.attn_width // g.heads
        self.sequences = config.micro_batch
        self.rows = self.sequences * g.context
        self.micro = config.micro_batches
        self._training = training = Training(config, RandomTokens(g, config.batch_sizes, config.seed))
        self.compute = training.compute
        with training.banks.lease_newest() as lease:  # no version follows
            self.bank = lease.bank
        self.weights: Any = self.bank.weights
        self.random = np.random.default_rng(7)
        self.slot: Any = training.slots.take()
        self.scratch: Any = training.scratch.take()
        self.lanes, self.gradient = training.lanes, training.gradient
        self.grads: Any = as_weights(g, self.lanes.arenas[0])
        for ids in (self.slot.ids, self.slot.targets):
            ids[:] = self.random.integers(0, g.vocabulary, self.rows)
        self.scale = LossScaler(config.loss_scale).start(0).scale / self.rows  # of the loss, as in the first update
        self.compute.embed(self.bank, self.slot)
        self.compute.forward(self.bank, self.slot)
        self.ticket = single_writer(accumulate=True)
        self.compute.backward(
            self.bank, self.slot, self.scale, self.grads, self.scratch, self.ticket._replace(accumulate=False)
        )

    def cases(self) -> list[KernelCase]:
        """Return the kernels of an update; one that calls others precedes them."""
        blocks = [self.embedding(), *self.forward_blocks(), *self.head(), *self.backward_blocks()]
        scattered = [self.d_embedding(self.d_stream)] if "wte" in self.trained else []
        return [*blocks, *scattered, *self.streams()]

    @property
    @abstractmethod
    def d_stream(self) -> Floats:
        """The gradient of the residual stream, (rows, channels)."""

    @abstractmethod
    def forward_blocks(self) -> list[KernelCase]:
        """Return forward through all blocks, and its parts."""

    @abstractmethod
    def head(self) -> list[KernelCase]:
        """Return the output projection with cross-entropy and its gradient, and its parts."""

    @abstractmethod
    def backward_blocks(self) -> list[KernelCase]:
        """Return backward through all blocks, and its parts."""

    def projection(self, tensors: Any, suffix: str = "") -> Any:
        """Return the output projection in a tuple of tensors: the token embedding if it has no other field for it."""
        return getattr(tensors, ("head" if hasattr(tensors, "head") else "wte") + suffix)

    def d_vector(self, name: str) -> Floats:
        """Return the gradient of the first layer's vector, if frozen, an array in its place, as the kernels do."""
        gradient: Floats = getattr(self.grads, name)[0]
        return gradient if gradient.size else np.zeros(parameter_shapes(self.geometry)[name][1:], np.float32)

    def linears(self) -> list[tuple[str, int, int]]:
        """Return the linear layers of a block: name, inputs, outputs."""
        matrices = {name: shape for name, shape in parameter_shapes(replace(self.geometry, lora=None)).items()
                    if len(shape) == 3}  # fmt: skip
        return [(name.removesuffix("_weight"), shape[1], shape[2]) for name, shape in matrices.items()]

    def row_work(self, width: int, element_bytes: int, flops: int, in_place: int = 0) -> KernelWork:
        """Return the work of a pass over rows of `width` elements, from the bytes and operations per element.

        `in_place` is the part of the bytes that is written to where other bytes were read.
        """
        elements = self.rows * width
        held = float((element_bytes - in_place) * elements) if in_place else 0.0
        return KernelWork(float(flops * elements), float(element_bytes * elements), held=held)

    def whole(
        self, name: str, parts: Sequence[KernelCase], call: Call, prepare: Call | None = None
    ) -> list[KernelCase]:
        """Return a kernel and the parts that it calls; its roofline bound is the sum of the parts."""
        steps = tuple((case.work, case.calls // self.micro) for case in parts)
        return [KernelCase(name, self.micro, total(steps), call, None, prepare, steps), *parts]

    def embedding(self) -> KernelCase:
        """Return the gather of the embeddings."""
        tokens, positions = self._gathered_rows()
        moved = self.EMBEDDING_BYTES * tokens + FLOAT * (positions + self.rows)
        work = KernelWork(float(self.rows * self.geometry.channels), float(moved * self.geometry.channels))
        return KernelCase("embedding", self.micro, work, partial(self.compute.embed, self.bank, self.slot))

    def d_embedding(self, dx: Floats) -> KernelCase:
        """Return the scatter of the embeddings' gradient, which is float32 in every precision."""
        g = self.geometry
        added = sum(self._gathered_rows())
        moved, held = (float(FLOAT * g.channels * (self.rows + times * added)) for times in (2, 1))
        work = KernelWork(2.0 * self.rows * g.channels, moved, held=held)
        scatter = self.layout.scatter_input_gradient
        call = partial(scatter, self.slot.ids, dx, g.context, self.slot.starts, self.grads, accumulate=True)
        return KernelCase("d_embedding", self.micro, work, call)

    def _gathered_rows(self) -> tuple[int, int]:
        """Return the numbers of distinct rows of tokens and positions that a micro-batch uses; each row moves once."""
        positions = parameter_shapes(self.geometry).get("wpe", (0,))[0]
        return np.unique(self.slot.ids).size, positions

    def streams(self) -> list[KernelCase]:
        """Return the passes over all parameters: the sum of the lanes, and AdamW with the packed weights it writes."""
        lanes, flat = self.lanes.flat, self.gradient.flat
        count, elements = lanes.shape
        chunks = -(-elements // kernels.CHUNK)
        separate = 0 if self.gradient.in_lane else 1  # arrays for the sum in addition to the lanes
        held = FLOAT * float((count + separate) * elements)
        reduced = KernelWork(float((count + 1) * elements), reduction_bytes(elements, count), held=held)
        forecasts = self.config.delay_correction.forecasts
        moved = update_bytes(self.geometry, self.trained, self.config.precision, forecasts=forecasts)
        held = moved - FLOAT * 3.0 * elements  # three are changed in place
        updated = KernelWork(16.0 * elements + self._rotations(), moved, held=held)
        optimizer = self._training.optimizer
        rotated = rotated_stage(self.config, self.gradient, optimizer, self.compute, 1)
        update = rotated or self.compute.update_stage(self.gradient, optimizer, 1)
        step = optimizer.step(batch=1, applied=1, grad_norm=0.0, scale=1.0)
        shard = UpdateShard(0, 0, (0, elements), self.bank, self.bank, step, BatchLoss(0.0, 1), 0.0)
        return [
            KernelCase(REDUCE, 1, reduced, partial(kernels.sum_lanes, lanes, flat, self.gradient.squares, 0, chunks)),
            KernelCase(ADAMW, 1, updated, partial(update, shard)),
        ]

    def _rotations(self) -> float:
        """Return the operations of the products with rotated bases; 0 without."""
        rotation = self._training.optimizer.rotation
        if rotation is None:
            return 0.0
        products = 3 if self.config.delay_correction.forecasts else 2
        parts = rotated_parts(parameter_shapes(self.geometry), rotation.sides)
        return 2.0 * products * sum(part.elements * len(part.matrix(rotation.bases)) for part in parts)


def update_bytes(geometry: Geometry, trained: Set[str], precision: Precision, *, forecasts: bool = False) -> float:
    """Return the bytes that AdamW moves: in 16 bits it also writes packed weights, in two layouts for bfloat16."""
    shapes = parameter_shapes(geometry)
    moved = adamw_bytes(arena_size({name: shapes[name] for name in shapes if name in trained}), forecasts=forecasts)
    if precision not in BITS16:
        return moved
    from threadloom.stages.memory.bits16 import packed_shapes

    packed = sum(prod(shape) for name, shape in packed_shapes(geometry).items() if name in trained)
    layouts = 2 if precision is Precision.BF16 else 1
    return moved + layouts * SHORT * float(packed)
