"""The whole model run through the kernels of 16 bits as the stages run it, and held against float64.

All arrays lie between guard pages. The forms of the weights are made here from their description, not by the product.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import reference
from tests.kernels.bits16.formats import BF16, FP16, Format, pack
from tests.kernels.bits16.support import Pages
from tests.kernels.support import Sizes, distance, flat_ids
from tests.reference import Array, Ids, Tensors
from threadloom.kernels.bits16.attention.layer import AttentionScratch, attention_scratch_shapes
from threadloom.kernels.bits16.embedding import embedding_forward_low
from threadloom.kernels.bits16.gpt2 import (
    blocks_backward_low,
    blocks_forward_low,
    head_backward_low,
    head_loss_low,
)
from threadloom.kernels.bits16.tensors import Forms, LowActivations, LowScratch, Wide, Workspace
from threadloom.kernels.common.accumulation import single_writer
from threadloom.kernels.common.tensors import Weights
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.float32.embedding import embedding_backward
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


def make_forms(form: Format, tensors: Tensors, pages: Pages) -> Forms:
    """Return the forms of the rounded matrices."""
    made: dict[str, NDArray[Any]] = {}
    for name, tensor in {"wte": tensors["wte"], **{name: tensors[of] for name, of in MATRICES.items()}}.items():
        bits = form.nearest(tensor)
        if form is FP16:
            made[name] = made[f"{name}_t"] = pages.copy(bits)
            continue
        layers = bits if bits.ndim == 3 else bits[None]
        for key, both in ((name, layers), (f"{name}_t", layers.transpose(0, 2, 1))):
            packed = np.stack([pack(np.ascontiguousarray(matrix)) for matrix in both])
            made[key] = pages.copy(packed if bits.ndim == 3 else packed[0])
    return Forms(**made)


@dataclass
class LowModel:
    """Weights, forms, gradients, activations and scratch for micro-batches of one size; all that is written is NaN."""

    sizes: Sizes
    form: Format
    tensors: Tensors
    logits_rows: int = 5
    slice_width: int = 16
    at_end: bool = True
    pages: Pages = field(init=False)

    def __post_init__(self) -> None:
        self.pages = Pages(self.at_end)
        self.weights = Weights(**{n: self.pages.copy(t.astype(np.float32)) for n, t in self.tensors.items()})
        self.forms = make_forms(self.form, self.tensors, self.pages)
        self.grads = Weights(**{n: self.floats(*shape) for n, shape in self.sizes.shapes().items()})
        self.acts, self.scratch = self._activations(), self._scratch()
        self.work, self.lane_work = self._workspace(), self._workspace()

    def floats(self, *shape: int) -> Floats:
        """Return a float32 array full of NaN."""
        return self.pages.empty(shape, np.float32)

    def shorts(self, *shape: int) -> NDArray[Any]:
        """Return an array of the format, full of NaN."""
        return self.pages.empty(shape, self.form.kind)

    def _activations(self) -> LowActivations:
        s = self.sizes
        n, r, c, f = s.layers, s.rows, s.channels, 4 * s.channels
        return LowActivations(
            x=self.floats(r, c), normed1=self.shorts(n, r, c), rstd1=self.floats(n, r), qkv=self.shorts(n, r, 3 * c),
            attn=self.shorts(n, r, c), attn_lse=self.floats(n, s.sequences, s.heads, s.tokens),
            normed2=self.shorts(n, r, c), rstd2=self.floats(n, r), fc=self.shorts(n, r, f), h=self.shorts(r, c),
            gelu=self.shorts(r, f),
        )  # fmt: skip

    def _scratch(self) -> LowScratch:
        s = self.sizes
        r, c, f, chunk = s.rows, s.channels, 4 * s.channels, min(self.logits_rows, s.rows)
        return LowScratch(
            dx=self.floats(r, c), dx_low=self.shorts(r, c), dh=self.floats(r, c), d_attn=self.shorts(r, c),
            d_qkv=self.shorts(r, 3 * c), d_fc=self.shorts(r, f), gelu=self.shorts(r, f), turned=self.shorts(f, r),
            logits=self.floats(chunk, s.vocabulary), d_logits=self.shorts(chunk, s.vocabulary),
            d_logits_turned=self.shorts(min(self.slice_width, s.vocabulary), chunk), h=self.shorts(r, c),
            normed=self.shorts(r, c), rstd=self.floats(r), d_bias=self.floats(c),
        )  # fmt: skip

    def _workspace(self) -> Workspace:
        s = self.sizes
        shapes = attention_scratch_shapes(s.context, s.channels // s.heads, self.form.kind)
        attention = AttentionScratch(**{name: self.pages.empty(shape, kind) for name, (shape, kind) in shapes.items()})
        nothing = np.empty(0, np.float32)
        if self.form is BF16:
            return Workspace(attention, Wide(nothing, nothing, nothing))
        r, c, f, v = s.rows, s.channels, 4 * s.channels, s.vocabulary
        rows, widths = self.scratch.logits.shape[0], (c, 3 * c, f)
        products = [(r, o, i) for i in widths for o in widths] + [(i, o, r) for i in widths for o in widths]
        products += [(rows, v, c), (rows, c, v), (self.scratch.d_logits_turned.shape[0], c, rows)]
        a, b = (max(sizes) for sizes in zip(*(fp16_scratch_sizes(*product) for product in products), strict=True))
        sums = max(fp16_sums_size(r, o) for o in widths)
        return Workspace(attention, Wide(self.floats(a), self.floats(b), self.floats(sums)))

    def forward(self, ids: Ids) -> None:
        """Fill the activations."""
        embedding_forward_low(self.forms.wte, self.weights.wpe, flat_ids(ids), self.sizes.tokens, self.acts.x)
        blocks_forward_low(self.weights, self.forms, self.acts, self.work, self.sizes.sequences, self.sizes.heads)

    def loss(self, targets: Ids) -> float:
        """Return the sum of the losses without gradients; backward may follow."""
        x, flat, s = self.acts.x, flat_ids(targets), self.scratch
        return head_loss_low(self.weights, self.forms, x, flat, s.normed, s.h, s.rstd, s.logits, self.lane_work)

    def backward(self, ids: Ids, targets: Ids, scale: float, accumulate: bool) -> float:
        """Return the sum of the losses; write or add all gradients."""
        s, w, f, a, g, scratch, work = (
            self.sizes, self.weights, self.forms, self.acts, self.grads, self.scratch, self.lane_work
        )  # fmt: skip
        loss = head_backward_low(w, f, a.x, flat_ids(targets), scale, g, scratch, work, accumulate, single_writer())
        blocks_backward_low(w, f, a, g, scratch, work, s.sequences, s.heads, accumulate, single_writer())
        embedding_backward(flat_ids(ids), scratch.dx, s.tokens, g.wte, g.wpe, accumulate)
        return loss

    def errors(self, expected: Tensors, divided_by: float = 1.0) -> dict[str, float]:
        """Return the relative L2 distance of every gradient; NaN for one that has a NaN."""
        return {n: distance(getattr(self.grads, n) / divided_by, expected[n]) for n in Weights._fields}

    def values(self, name: str) -> Array:
        """Return a 16-bit activation in float64."""
        return self.form.numbers(getattr(self.acts, name))


def held(errors: dict[str, float], bound: float) -> None:
    """Fail for an error above the bound, and for a NaN."""
    wrong = {name: error for name, error in errors.items() if not error <= bound}
    assert not wrong, f"relative L2 distance above {bound:g}: {wrong}"


def check_model(
    sizes: Sizes, form: Format, seed: int = 0, logits_rows: int = 5, slice_width: int = 16, at_end: bool = True
) -> dict[str, float]:
    """Hold the loss and every gradient of one micro-batch against the reference, and return the errors found.

    The loss is scaled as people scale it for float16, by a power of two, and the gradients are taken back.
    """
    rng = np.random.default_rng(seed)
    model = LowModel(sizes, form, random_tensors(sizes, rng), logits_rows, slice_width, at_end)
    ids, targets = sizes.ids(rng), sizes.ids(rng)
    scale = 1.0 / sizes.rows
    expected_loss, expected = reference.loss_and_gradients(model.tensors, ids, targets, sizes.heads, scale)
    model.forward(ids)
    found = {"loss without gradients": abs(model.loss(targets) / expected_loss - 1.0)}
    scaled = 1024.0 if form is FP16 else 1.0
    found["loss"] = abs(model.backward(ids, targets, scaled * scale, accumulate=False) / expected_loss - 1.0)
    held(found, LOSS[form.name] / sizes.rows**0.5)
    errors = model.errors(expected, scaled)
    many = 1.0 if sizes.rows >= FEW else 2.0
    held(errors, many * GRADIENT[form.name])
    held({"mean over all tensors": float(np.mean(list(errors.values())))}, many * MEAN[form.name])
    return found | errors
