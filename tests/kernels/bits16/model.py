"""The whole model run through the kernels of 16 bits as the stages run it, and held against float64.

All arrays lie between guard pages. The forms of the weights are made here from their description, not by the product.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests import reference
from tests.error_bounds import IN_BF16, IN_FP16, Storage, model_bounds
from tests.kernels.bits16.formats import BF16, FP16, Format, pack
from tests.kernels.bits16.support import Pages
from tests.kernels.comparison import assert_distance, distance
from tests.kernels.model import MicroBatchModel
from tests.kernels.support import (
    DROPOUT_KEY,
    GPT2_LINEAR,
    Sizes,
    clear_outside_blocks,
    flat_ids,
    gradient_shapes,
    lora_ranks,
)
from tests.reference import Array, Ids, LoraSizes, Tensors
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
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.protocol import ModelKernels
from threadloom.kernels.common.tensors import HeadCounts, Weights
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.matmul.bf16 import prepare_bf16
from threadloom.kernels.matmul.fp16 import fp16_scratch_sizes, fp16_sums_size
from threadloom.kernels.matmul.pack import DEPTH_STEP, PANEL

SPREAD = 0.6
"""Of weights, times the square root of the channels: it keeps the size of what they are multiplied with."""

MATRICES = {"qkv": "qkv_weight", "attn_proj": "attn_proj_weight", "fc": "fc_weight", "mlp_proj": "mlp_proj_weight"}


def random_tensors(sizes: Sizes, rng: np.random.Generator) -> Tensors:
    """Return weights of the size that those of a model in training have, and no tensor of zeros or ones.

    Larger ones would saturate the softmax of the scores, whose gradient is then a small difference of large numbers.
    """
    s, spread = sizes, SPREAD * sizes.channels**-0.5
    tensors = reference.random_tensors(rng, s.vocabulary, s.context, s.layers, s.channels, spread=spread)
    return tensors | (s.lora.random_tensors(rng, s.shapes(), spread) if s.lora else {})


def pack_weights(fmt: Format, tensors: Tensors, pages: Pages) -> PackedWeights:
    """Return the packed weights of the rounded matrices, by the slow reference."""
    matrices = {field: tensors[name] for field, name in MATRICES.items()}
    matrices = {"wte": tensors["wte"], **matrices, **adapter_tensors(tensors, GPT2_LINEAR)}
    return PackedWeights(**packed_views(fmt, matrices, pages))


def adapter_tensors(tensors: Tensors, linear: tuple[str, ...]) -> Tensors:
    """Return the matrices of the adapters of linear layers, without elements if a layer has none."""
    nothing = np.zeros((len(tensors["qkv_weight"]), 0, 0))
    names = [f"{name}_{key}" for name in linear for key in "ab"]
    return {name: tensors.get(name, nothing) for name in names}


def xa_width(fmt: Format, lora: LoraSizes | None, name: str) -> int:
    """Return the columns that are kept of the input of an adapter's second matrix."""
    ranks = lora_ranks(lora, name)
    return -(-ranks // PANEL) * PANEL if fmt is BF16 else ranks


def adapter_gemms(
    lora: LoraSizes | None, layers: Mapping[str, tuple[int, int]], rows: int
) -> list[tuple[int, int, int]]:
    """Return rows, columns and depth of the products of the adapters of `layers`, name → (inputs, outputs)."""
    sizes = [(lora_ranks(lora, name), width) for name, widths in layers.items() for width in widths]
    return [gemm for p, width in sizes for gemm in ((rows, p, width), (rows, width, p), (p, width, rows))]


def packed_views(fmt: Format, matrices: Tensors, pages: Pages) -> dict[str, NDArray[Any]]:
    """Return the packed weights of rounded matrices, each with the packed transpose under its name plus "_t"."""
    views: dict[str, NDArray[Any]] = {}
    for name, tensor in matrices.items():
        bits = fmt.nearest(tensor)
        if fmt is FP16:
            views[name] = views[f"{name}_t"] = pages.copy(bits)
            continue
        layers = bits if bits.ndim == 3 else bits[None]
        for key, both in ((name, layers), (f"{name}_t", layers.transpose(0, 2, 1))):
            packed = np.stack([pack(np.ascontiguousarray(matrix)) for matrix in both])
            views[key] = pages.copy(packed if bits.ndim == 3 else packed[0])
    return views


def without_transposes(packed: Any, pages: Pages) -> Any:
    """Return bfloat16's packed weights without the packed transposes of the layers' matrices."""

    def is_held(name: str) -> bool:
        return name.endswith("_t") and not name.endswith(("_a_t", "_b_t"))

    held = {name: array for name, array in packed._asdict().items() if array.ndim == 4 and is_held(name)}
    return packed._replace(**{name: pages.copy(array[:, :0]) for name, array in held.items()})


def one_panel_words(*columns: int) -> int:
    """Return the words of one panel of the packed transpose of the matrix with the most columns."""
    return max(-(-width // DEPTH_STEP) * DEPTH_STEP // 2 * PANEL for width in columns)


@dataclass
class Model16(MicroBatchModel):
    """Weights, gradients, activations and scratch for micro-batches of one size; arrays start as NaN.

    With `small` the backward pass recomputes what it can.
    """

    sizes: Sizes
    fmt: Format
    tensors: Tensors
    logits_rows: int = 5
    slice_width: int = 16
    at_end: bool = True
    frozen: frozenset[str] = frozenset()
    small: bool = False
    kernels: ClassVar[ModelKernels[Any, Any, Any, Any, Any]] = gpt2
    pages: Pages = field(init=False)
    packed_tensors: Tensors = field(init=False)  # the weights that the kernels read

    def __post_init__(self) -> None:
        prepare_bf16()
        self.packed_tensors = self.fmt.packed_weights(self.tensors)
        self.pages = Pages(self.at_end)
        shapes = gradient_shapes(self.sizes, frozenset())
        tensors = {name: self.tensors.get(name, np.zeros(shape)) for name, shape in shapes.items()}
        self.master = Weights(**{n: self.pages.copy(t.astype(np.float32)) for n, t in tensors.items()})
        packed = pack_weights(self.fmt, self.tensors, self.pages)
        drops = self.small and self.fmt is BF16
        self.weights = Weights16(self.master, without_transposes(packed, self.pages) if drops else packed)
        self.grads = Weights(**{n: self.floats(*s) for n, s in gradient_shapes(self.sizes, self.frozen).items()})
        clear_outside_blocks(self.grads, self.sizes.lora)
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
            normed2=self.bits(n, r, c), rstd2=self.floats(n, r), fc=self.bits(1 if self.small else n, r, f),
            **{f"{name}_xa": self.bits(n, r, xa_width(self.fmt, s.lora, name)) for name in GPT2_LINEAR},
            dropout_key=np.full(1, DROPOUT_KEY, np.uint64), starts=NO_BORDERS,
            dropped=self.bits(self._dropped), h=self.bits(r, c), gelu=self.bits(r, f), thread=self._thread_scratch(),
        )  # fmt: skip

    @property
    def _dropped(self) -> int:
        lora = self.sizes.lora
        return self.sizes.rows * 4 * self.sizes.channels if lora and lora.dropout else 0

    @property
    def _xa_width(self) -> int:
        return max(xa_width(self.fmt, self.sizes.lora, name) for name in GPT2_LINEAR)

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
            d_xa=self.bits(r * self._xa_width), xa_t=self.bits(r * self._xa_width),
            dropped=self.bits(self._dropped), d_dropped=self.floats(self._dropped), unused=self.floats(3, c),
            thread=self._thread_scratch(),
        )  # fmt: skip

    def _thread_scratch(self) -> ThreadScratch:
        s = self.sizes
        shapes = attention_scratch_shapes(s.context, s.channels // s.heads, HeadCounts(s.heads, s.heads), self.fmt.kind)
        attention = AttentionScratch(**{name: self.pages.empty(shape, kind) for name, (shape, kind) in shapes.items()})
        empty, sums = np.empty(0, np.float32), self.floats(s.rows * self._xa_width)
        if self.fmt is BF16:
            words = one_panel_words(4 * s.channels) if self.small else 0
            part = self.pages.empty((words,), np.uint32)
            return ThreadScratch(attention, Fp16UpcastScratch(empty, empty, empty), part, sums)
        r, c, f, v = s.rows, s.channels, 4 * s.channels, s.vocabulary
        widths = (c, 3 * c, f)
        shapes_mnk = [(r, o, i) for i in widths for o in widths] + [(i, o, r) for i in widths for o in widths]
        shapes_mnk += [(self._chunk, v, c), (self._chunk, c, v), (self._slice, c, self._chunk)]
        layers = {"qkv": (c, 3 * c), "attn_proj": (c, c), "fc": (c, f), "mlp_proj": (f, c)}
        shapes_mnk += adapter_gemms(s.lora, layers, r)
        a, b = (max(sizes) for sizes in zip(*(fp16_scratch_sizes(*mnk) for mnk in shapes_mnk), strict=True))
        linear = max(fp16_sums_size(r, o) for o in widths)
        upcast = Fp16UpcastScratch(self.floats(a), self.floats(b), self.floats(linear))
        return ThreadScratch(attention, upcast, np.empty(0, np.uint32), sums)

    def forward(self, ids: Ids) -> None:
        """Fill the activations."""
        s, packed = self.sizes, self.weights.packed
        embedding_forward(packed.wte, self.master.wpe, flat_ids(ids), s.tokens, NO_BORDERS, self.acts.x)
        blocks_forward(self.weights, self.acts, s.sequences, s.constants)

    def loss(self, targets: Ids) -> float:
        """Return the sum of the losses without gradients; the activations stay valid for `backward`."""
        kept = self.acts.normed1.copy(), self.acts.rstd1.copy()
        loss = head_loss(self.weights, self.acts, flat_ids(targets), self.sizes.constants, self.scratch.logits)
        self.acts.normed1[...], self.acts.rstd1[...] = kept
        return loss

    def errors(self, expected: Tensors, divided_by: float = 1.0) -> dict[str, float]:
        """Return the relative L2 distance of every gradient; NaN for one that has a NaN."""
        return {n: distance(getattr(self.grads, n) / divided_by, expected[n]) for n in expected}

    def bounds(self, ids: Ids, targets: Ids, scale: float, scaled: float) -> dict[str, float]:
        """Return the relative distances that are allowed to the results, if gradients are scaled by `scaled`."""
        storage = storage_of(self.fmt, scaled)
        return model_bounds(self.packed_tensors, ids, targets, self.sizes.heads, scale, storage, self.sizes.lora)

    def check_gradients(self, expected: Tensors, bounds: Mapping[str, float], scaled: float) -> None:
        """Compare every gradient, divided by `scaled`, with the reference's."""
        for name, error in self.errors(expected, scaled).items():
            assert_distance(error, bounds[name], name)

    def values(self, name: str) -> Array:
        """Return a 16-bit activation in float64."""
        return self.fmt.numbers(getattr(self.acts, name))


def storage_of(fmt: Format, scaled: float = 1.0) -> Storage:
    """Return the storage of a format; its smallest numbers are those of gradients before they are scaled."""
    storage = IN_FP16 if fmt is FP16 else IN_BF16
    return storage._replace(tiny=storage.tiny / scaled)


class Case(NamedTuple):
    """A micro-batch, the results of the reference, and how far the kernels' may be from them."""

    tensors: Tensors
    ids: Ids
    targets: Ids
    scaled: float  # gradients are multiplied by it
    loss: float
    gradients: Tensors
    bounds: dict[str, float]


@lru_cache(maxsize=8)  # on every path and in chunks of every size
def make_case(sizes: Sizes, fmt: Format, seed: int, *, all_count: bool = False) -> Case:
    """Return a random micro-batch, some of whose targets are ignored unless `all_count`."""
    rng = np.random.default_rng(seed)
    tensors, ids = random_tensors(sizes, rng), sizes.ids(rng)
    targets = sizes.ids(rng) if all_count else sizes.targets(rng)
    scale, scaled = 1.0 / sizes.rows, 1024.0 if fmt is FP16 else 1.0
    packed = fmt.packed_weights(tensors)
    record = reference.forward(packed, ids, sizes.heads, sizes.lora)
    loss = float(reference.cross_entropy_forward(record.logits, targets).sum())
    gradients, _ = reference.backward(packed, record, targets, scale)
    bounds = model_bounds(packed, ids, targets, sizes.heads, scale, storage_of(fmt, scaled), sizes.lora)
    return Case(tensors, ids, targets, scaled, loss, gradients, bounds)


def check_model(
    sizes: Sizes, fmt: Format, seed: int = 0, logits_rows: int = 5, slice_width: int = 16, at_end: bool = True
) -> None:
    """Compare the loss and every gradient of one micro-batch with the reference.

    The loss is scaled as people scale it for float16, by a power of two, and the gradients are taken back.
    """
    case = make_case(sizes, fmt, seed)
    model = Model16(sizes, fmt, case.tensors, logits_rows, slice_width, at_end)
    model.forward(case.ids)
    assert_distance(abs(model.loss(case.targets) / case.loss - 1.0), case.bounds["loss"], "loss alone")
    loss = model.backward(case.ids, case.targets, case.scaled / sizes.rows, accumulate=False)
    assert_distance(abs(loss / case.loss - 1.0), case.bounds["loss"], "loss")
    model.check_gradients(case.gradients, case.bounds, case.scaled)
