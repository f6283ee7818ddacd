"""The whole model run through the kernels of 16 bits as the stages run it, and held against float64.

All arrays lie between guard pages. The forms of the weights are made here from their description, not by the product.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tests import reference
from tests.kernels.bits16.formats import BF16, FP16, Format, pack
from tests.kernels.bits16.support import Pages
from tests.kernels.comparison import assert_distance, distance
from tests.kernels.model import MicroBatchModel
from tests.kernels.support import Sizes, flat_ids
from tests.reference import Array, Ids, Tensors
from threadloom.kernels.bits16 import gpt2
from threadloom.kernels.bits16.attention.scratch import AttentionScratch, attention_scratch_shapes
from threadloom.kernels.bits16.embedding import embedding_forward
from threadloom.kernels.bits16.gpt2 import blocks_forward, head_loss
from threadloom.kernels.bits16.tensors import (
    Activations16,
    Fp16UpcastScratch,
    PackedWeights,
    Scratch16,
    ThreadScratch,
    Weights16,
)
from threadloom.kernels.common.protocol import ModelKernels
from threadloom.kernels.common.tensors import Weights
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.matmul.bf16 import prepare_bf16
from threadloom.kernels.matmul.fp16 import fp16_scratch_sizes, fp16_sums_size

GRADIENT = {BF16.name: 0.02, FP16.name: 0.005}
"""Relative L2 distance allowed to the gradient of a tensor, from the same weights in float64.

A gradient goes through some 8 L roundings one after another (weights, normalised rows, outputs, and each again on the
way back), whose errors are independent: sqrt(8 L) times the root mean square of one, `unit` / 2.5, is 0.8 % in bfloat16
and 0.1 % in float16 for 3 layers. Over 150 random models the worst tensor was at 1.7 % and 0.34 %.
"""
MEAN = {BF16.name: 0.012, FP16.name: 0.0015}
"""The same for the mean over all tensors, which was 0.66 % and 0.08 %."""
FEW = 8
"""Rows under which nothing averages out in the tensors of a few channels: twice the distance is allowed there."""
LOSS = {BF16.name: 0.01, FP16.name: 0.00125}
"""The same for the loss of one row; that of n rows is their sum, and may be off by 1 / sqrt(n) of it."""
FORWARD = {BF16.name: 0.015, FP16.name: 0.002}
"""The same for activations."""

SPREAD = 0.6
"""Of weights, times the square root of the channels: it keeps the size of what they are multiplied with."""

MATRICES = {"qkv": "qkv_weight", "attn_proj": "attn_proj_weight", "fc": "fc_weight", "mlp_proj": "mlp_proj_weight"}


def random_tensors(sizes: Sizes, rng: np.random.Generator) -> Tensors:
    """Return weights of the size that those of a model in training have, and no tensor of zeros or ones.

    Larger ones would saturate the softmax of the scores, whose gradient is then a small difference of large numbers.
    """
    s = sizes
    return reference.random_tensors(
        rng, s.vocabulary, s.context, s.layers, s.channels, spread=SPREAD * s.channels**-0.5
    )


def pack_weights(fmt: Format, tensors: Tensors, pages: Pages) -> PackedWeights:
    """Return the packed weights of the rounded matrices, by the slow reference."""
    views: dict[str, NDArray[Any]] = {}
    for name, tensor in {"wte": tensors["wte"], **{name: tensors[of] for name, of in MATRICES.items()}}.items():
        bits = fmt.nearest(tensor)
        if fmt is FP16:
            views[name] = views[f"{name}_t"] = pages.copy(bits)
            continue
        layers = bits if bits.ndim == 3 else bits[None]
        for key, both in ((name, layers), (f"{name}_t", layers.transpose(0, 2, 1))):
            packed = np.stack([pack(np.ascontiguousarray(matrix)) for matrix in both])
            views[key] = pages.copy(packed if bits.ndim == 3 else packed[0])
    return PackedWeights(**views)


@dataclass
class Model16(MicroBatchModel):
    """Weights, gradients, activations and scratch for micro-batches of one size; arrays start as NaN."""

    sizes: Sizes
    fmt: Format
    tensors: Tensors
    logits_rows: int = 5
    slice_width: int = 16
    at_end: bool = True
    kernels: ClassVar[ModelKernels[Any, Any, Any]] = gpt2
    pages: Pages = field(init=False)

    def __post_init__(self) -> None:
        prepare_bf16()
        self.pages = Pages(self.at_end)
        self.master = Weights(**{n: self.pages.copy(t.astype(np.float32)) for n, t in self.tensors.items()})
        self.weights = Weights16(self.master, pack_weights(self.fmt, self.tensors, self.pages))
        self.grads = Weights(**{n: self.floats(*shape) for n, shape in self.sizes.shapes().items()})
        self.acts, self.scratch = self._activations(), self._scratch()

    def floats(self, *shape: int) -> Floats:
        """Return a float32 array full of NaN."""
        return self.pages.empty(shape, np.float32)

    def bits(self, *shape: int) -> NDArray[Any]:
        """Return an array of the format, full of NaN."""
        return self.pages.empty(shape, self.fmt.kind)

    def _activations(self) -> Activations16:
        s = self.sizes
        n, r, c, f = s.layers, s.rows, s.channels, 4 * s.channels
        return Activations16(
            x=self.floats(r, c), normed1=self.bits(n, r, c), rstd1=self.floats(n, r), qkv=self.bits(n, r, 3 * c),
            attn=self.bits(n, r, c), attn_lse=self.floats(n, s.sequences, s.heads, s.tokens),
            normed2=self.bits(n, r, c), rstd2=self.floats(n, r), fc=self.bits(n, r, f), h=self.bits(r, c),
            gelu=self.bits(r, f), thread=self._thread_scratch(),
        )  # fmt: skip

    @property
    def _chunk(self) -> int:
        return min(self.logits_rows, self.sizes.rows)

    @property
    def _slice(self) -> int:
        return min(self.slice_width, self.sizes.vocabulary)

    def _scratch(self) -> Scratch16:
        s, chunk = self.sizes, self._chunk
        r, c, f = s.rows, s.channels, 4 * s.channels
        return Scratch16(
            dx=self.floats(r, c), dx16=self.bits(r, c), dh=self.floats(r, c), d_attn=self.bits(r, c),
            d_qkv=self.bits(r, 3 * c), d_fc=self.bits(r, f), gelu=self.bits(r, f), transposed=self.bits(f, r),
            logits=self.floats(chunk, s.vocabulary), d_logits=self.bits(chunk, s.vocabulary),
            d_logits_t=self.bits(self._slice, chunk), h=self.bits(r, c), normed=self.bits(r, c), rstd=self.floats(r),
            d_bias=self.floats(c), thread=self._thread_scratch(),
        )  # fmt: skip

    def _thread_scratch(self) -> ThreadScratch:
        s = self.sizes
        shapes = attention_scratch_shapes(s.context, s.channels // s.heads, self.fmt.kind)
        attention = AttentionScratch(**{name: self.pages.empty(shape, kind) for name, (shape, kind) in shapes.items()})
        empty = np.empty(0, np.float32)
        if self.fmt is BF16:
            return ThreadScratch(attention, Fp16UpcastScratch(empty, empty, empty))
        r, c, f, v = s.rows, s.channels, 4 * s.channels, s.vocabulary
        widths = (c, 3 * c, f)
        shapes_mnk = [(r, o, i) for i in widths for o in widths] + [(i, o, r) for i in widths for o in widths]
        shapes_mnk += [(self._chunk, v, c), (self._chunk, c, v), (self._slice, c, self._chunk)]
        a, b = (max(sizes) for sizes in zip(*(fp16_scratch_sizes(*mnk) for mnk in shapes_mnk), strict=True))
        sums = max(fp16_sums_size(r, o) for o in widths)
        return ThreadScratch(attention, Fp16UpcastScratch(self.floats(a), self.floats(b), self.floats(sums)))

    def forward(self, ids: Ids) -> None:
        """Fill the activations."""
        s, packed = self.sizes, self.weights.packed
        embedding_forward(packed.wte, self.master.wpe, flat_ids(ids), s.tokens, self.acts.x)
        blocks_forward(self.weights, self.acts, s.sequences, s.heads)

    def loss(self, targets: Ids) -> float:
        """Return the sum of the losses without gradients; the activations stay valid for `backward`."""
        kept = self.acts.normed1.copy(), self.acts.rstd1.copy()
        loss = head_loss(self.weights, self.acts, flat_ids(targets), self.scratch.logits)
        self.acts.normed1[...], self.acts.rstd1[...] = kept
        return loss

    def errors(self, expected: Tensors, divided_by: float = 1.0) -> dict[str, float]:
        """Return the relative L2 distance of every gradient; NaN for one that has a NaN."""
        return {n: distance(getattr(self.grads, n) / divided_by, expected[n]) for n in Weights._fields}

    def values(self, name: str) -> Array:
        """Return a 16-bit activation in float64."""
        return self.fmt.numbers(getattr(self.acts, name))


def held(errors: dict[str, float], bound: float) -> None:
    """Fail for an error above the bound, and for a NaN."""
    for name, error in errors.items():
        assert_distance(error, bound, name)


def check_model(
    sizes: Sizes, fmt: Format, seed: int = 0, logits_rows: int = 5, slice_width: int = 16, at_end: bool = True
) -> dict[str, float]:
    """Hold the loss and every gradient of one micro-batch against the reference, and return the errors found.

    The loss is scaled as people scale it for float16, by a power of two, and the gradients are taken back.
    """
    rng = np.random.default_rng(seed)
    model = Model16(sizes, fmt, random_tensors(sizes, rng), logits_rows, slice_width, at_end)
    ids, targets = sizes.ids(rng), sizes.ids(rng)
    scale = 1.0 / sizes.rows
    expected_loss, expected = reference.loss_and_gradients(model.tensors, ids, targets, sizes.heads, scale)
    model.forward(ids)
    found = {"loss without gradients": abs(model.loss(targets) / expected_loss - 1.0)}
    scaled = 1024.0 if fmt is FP16 else 1.0
    found["loss"] = abs(model.backward(ids, targets, scaled * scale, accumulate=False) / expected_loss - 1.0)
    held(found, LOSS[fmt.name] / sizes.rows**0.5)
    errors = model.errors(expected, scaled)
    many = 1.0 if sizes.rows >= FEW else 2.0
    held(errors, many * GRADIENT[fmt.name])
    held({"mean over all tensors": float(np.mean(list(errors.values())))}, many * MEAN[fmt.name])
    return found | errors
