"""A whole Llama run through the kernels of 16 bits as the stages run it, and compared with float64.

All arrays are between guard pages. The packed weights are computed here from their description, not by the product.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tests.kernels.bits16.formats import BF16, FP16, Format
from tests.kernels.bits16.model import (
    SPREAD,
    adapter_gemms,
    adapter_tensors,
    one_panel_words,
    packed_views,
    storage_of,
    without_transposes,
    xa_width,
)
from tests.kernels.bits16.support import Pages
from tests.kernels.comparison import assert_distance, distance
from tests.kernels.llama_model import LlamaBatch, LlamaModel, batch_of, tensors_of
from tests.kernels.llama_support import LLAMA_LINEAR, MATRICES, LlamaCase, gradient_shapes
from tests.kernels.support import DROPOUT_KEY, clear_outside_blocks, flat_ids
from tests.reference import Ids, Tensors
from threadloom.kernels.bits16 import llama
from threadloom.kernels.bits16.attention.scratch import AttentionScratch, attention_scratch_shapes
from threadloom.kernels.bits16.embedding import token_embedding_forward
from threadloom.kernels.bits16.llama import blocks_forward, head_loss
from threadloom.kernels.bits16.tensors import (
    Fp16UpcastScratch,
    LlamaActivations16,
    LlamaPackedWeights,
    LlamaScratch16,
    LlamaWeights16,
    ThreadScratch,
)
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.protocol import ModelKernels
from threadloom.kernels.common.tensors import HeadCounts, LlamaWeights
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.matmul.bf16 import prepare_bf16
from threadloom.kernels.matmul.fp16 import fp16_scratch_sizes, fp16_sums_size


def random_tensors(case: LlamaCase, rng: np.random.Generator) -> Tensors:
    """Return weights of the size that those of a model in training have, and no tensor of zeros or ones."""
    return case.sizes.random_tensors(rng, spread=SPREAD * case.sizes.channels**-0.5)


def pack_llama(fmt: Format, tensors: Tensors, pages: Pages) -> LlamaPackedWeights:
    """Return the packed weights of the rounded matrices, by the slow reference."""
    matrices = {field: tensors[name] for field, name in MATRICES.items() if name in tensors}
    matrices = {"wte": tensors["wte"], **matrices, **adapter_tensors(tensors, LLAMA_LINEAR)}
    views = packed_views(fmt, matrices, pages)
    wte_t = views.pop("wte_t")
    return LlamaPackedWeights(**{"head": views["wte"], "head_t": wte_t, **views})


@dataclass
class Llama16(LlamaModel):
    """Weights, gradients, activations and scratch for micro-batches of one size; arrays start as NaN.

    With `small` the backward pass recomputes what it can.
    """

    sizes: LlamaCase
    fmt: Format
    tensors: Tensors
    logits_rows: int = 5
    slice_width: int = 16
    at_end: bool = True
    frozen: frozenset[str] = frozenset()
    small: bool = False
    kernels: ClassVar[ModelKernels[Any, Any, Any, Any, Any]] = llama
    pages: Pages = field(init=False)

    def __post_init__(self) -> None:
        prepare_bf16()
        case, self.pages = self.sizes, Pages(self.at_end)
        master = {name: self.pages.copy(t.astype(np.float32)) for name, t in tensors_of(case, self.tensors).items()}
        grads = {name: self.floats(*shape) for name, shape in gradient_shapes(case, self.frozen).items()}
        if case.sizes.tied:
            master["head"], grads["head"] = master["wte"], grads["wte"]
        packed = pack_llama(self.fmt, self.tensors, self.pages)
        if self.small and self.fmt is BF16:
            packed = without_transposes(packed, self.pages)
        self.weights = LlamaWeights16(LlamaWeights(**master), packed)
        self.grads = LlamaWeights(**grads)
        clear_outside_blocks(self.grads, case.sizes.lora)
        self.acts, self.scratch = self._activations(), self._scratch()

    def floats(self, *shape: int) -> Floats:
        """Return a float32 array full of NaN."""
        return self.pages.empty(shape, np.float32)

    def bits(self, *shape: int) -> NDArray[Any]:
        """Return an array of the format, full of NaN."""
        return self.pages.empty(shape, self.fmt.kind)

    def _activations(self) -> LlamaActivations16:
        case, s = self.sizes, self.sizes.sizes
        n, r, c, f = s.layers, case.rows, s.channels, s.mlp_width
        return LlamaActivations16(
            x=self.floats(r, c), normed1=self.bits(n, r, c), rstd1=self.floats(n, r),
            qkv=self.bits(n, r, case.qkv_width), qk_raw=self.bits(n, r, case.raw_width),
            attn=self.bits(n, r, case.attn_width), attn_lse=self.floats(n, case.sequences, s.heads, case.tokens),
            normed2=self.bits(n, r, c), rstd2=self.floats(n, r),
            gate_up=self.bits(1 if self.small else n, r, 2 * f), h=self.bits(r, c),
            **{f"{name}_xa": self.bits(n, r, xa_width(self.fmt, s.lora, name)) for name in LLAMA_LINEAR},
            dropout_key=np.full(1, DROPOUT_KEY, np.uint64), starts=NO_BORDERS, dropped=self.bits(self._dropped),
            gated=self.bits(r, f), thread=self._thread_scratch(),
        )  # fmt: skip

    @property
    def _dropped(self) -> int:
        case, s = self.sizes, self.sizes.sizes
        return case.rows * max(s.channels, case.attn_width, s.mlp_width) if s.lora and s.lora.dropout else 0

    @property
    def _xa_width(self) -> int:
        return max(xa_width(self.fmt, self.sizes.sizes.lora, name) for name in LLAMA_LINEAR)

    @property
    def _chunk(self) -> int:
        return min(self.logits_rows, self.sizes.rows)

    @property
    def _slice(self) -> int:
        return min(self.slice_width, self.sizes.sizes.vocabulary)

    def _scratch(self) -> LlamaScratch16:
        case, s, chunk = self.sizes, self.sizes.sizes, self._chunk
        r, c, f, v = case.rows, s.channels, s.mlp_width, s.vocabulary
        return LlamaScratch16(
            dx=self.floats(r, c), dx16=self.bits(r, c), dh=self.floats(r, c), d_attn=self.bits(r, case.attn_width),
            d_qkv=self.bits(r, case.qkv_width), d_gated=self.bits(r, f), d_gate_up=self.bits(r, 2 * f),
            gated=self.bits(r, f), transposed=self.bits(max(c, f, case.attn_width), r), logits=self.floats(chunk, v),
            d_logits=self.bits(chunk, v), d_logits_t=self.bits(self._slice, chunk), h=self.bits(r, c),
            normed=self.bits(r, c), rstd=self.floats(r),
            d_xa=self.bits(r * self._xa_width), xa_t=self.bits(r * self._xa_width),
            dropped=self.bits(self._dropped), d_dropped=self.floats(self._dropped), thread=self._thread_scratch(),
        )  # fmt: skip

    def _thread_scratch(self) -> ThreadScratch:
        case, s = self.sizes, self.sizes.sizes
        heads = HeadCounts(s.heads, s.kv_heads)
        shapes = attention_scratch_shapes(case.context, s.head_size, heads, self.fmt.kind)
        attention = AttentionScratch(**{name: self.pages.empty(shape, kind) for name, (shape, kind) in shapes.items()})
        empty, sums = np.empty(0, np.float32), self.floats(case.rows * self._xa_width)
        if self.fmt is BF16:
            words = one_panel_words(case.qkv_width, s.channels, 2 * s.mlp_width) if self.small else 0
            part = self.pages.empty((words,), np.uint32)
            return ThreadScratch(attention, Fp16UpcastScratch(empty, empty, empty), part, sums)
        r, c, f, v = case.rows, s.channels, s.mlp_width, s.vocabulary
        layers = {"qkv": (c, case.qkv_width), "attn_proj": (case.attn_width, c), "gate_up": (c, 2 * f), "down": (f, c)}
        gemms = [gemm for i, o in layers.values() for gemm in ((r, o, i), (r, i, o), (i, o, r))]
        gemms += [(self._chunk, v, c), (self._chunk, c, v), (self._slice, c, self._chunk)]
        gemms += adapter_gemms(s.lora, layers, r)
        a, b = (max(sizes) for sizes in zip(*(fp16_scratch_sizes(*gemm) for gemm in gemms), strict=True))
        linear = max(fp16_sums_size(r, width) for widths in layers.values() for width in widths)
        upcast = Fp16UpcastScratch(self.floats(a), self.floats(b), self.floats(linear))
        return ThreadScratch(attention, upcast, np.empty(0, np.uint32), sums)

    def forward(self, ids: Ids) -> None:
        """Fill the activations."""
        token_embedding_forward(self.weights.packed.wte, flat_ids(ids), self.acts.x)
        blocks_forward(self.weights, self.acts, self.sizes.sequences, self.sizes.constants)

    def loss(self, targets: Ids) -> float:
        """Return the sum of the losses without gradients; the activations stay valid for `backward`."""
        kept = self.acts.normed1.copy(), self.acts.rstd1.copy()
        loss = head_loss(self.weights, self.acts, flat_ids(targets), self.sizes.constants, self.scratch.logits)
        self.acts.normed1[...], self.acts.rstd1[...] = kept
        return loss

    def errors(self, expected: Tensors, divided_by: float = 1.0) -> dict[str, float]:
        """Return the relative L2 distance of every gradient; NaN for one that has a NaN."""
        return {name: distance(getattr(self.grads, name) / divided_by, tensor) for name, tensor in expected.items()}

    def check_gradients(self, expected: Tensors, bounds: Mapping[str, float], scaled: float) -> None:
        """Compare every gradient, divided by `scaled`, with the reference's."""
        for name, error in self.errors(expected, scaled).items():
            assert_distance(error, bounds[name], name)


def scale_of(fmt: Format) -> float:
    """Return the factor of the loss with which gradients of the format are computed: a power of two for float16."""
    return 1024.0 if fmt is FP16 else 1.0


@lru_cache(maxsize=8)  # on every path and in chunks of every size
def make_batch(case: LlamaCase, fmt: Format, seed: int) -> tuple[Tensors, LlamaBatch]:
    """Return a random model, and a random micro-batch of it with the results of the reference for rounded matrices."""
    rng = np.random.default_rng(seed)
    tensors = random_tensors(case, rng)
    return tensors, batch_of(case, fmt.packed_weights(tensors), rng, storage_of(fmt, scale_of(fmt)))


def check_llama(
    case: LlamaCase, fmt: Format, seed: int = 0, logits_rows: int = 5, slice_width: int = 16, at_end: bool = True
) -> None:
    """Compare the loss and every gradient of one micro-batch with the reference.

    The loss is scaled as people scale it for float16, by a power of two, and the gradients are divided by it.
    """
    (tensors, batch), scaled = make_batch(case, fmt, seed), scale_of(fmt)
    model = Llama16(case, fmt, tensors, logits_rows, slice_width, at_end)
    model.forward(batch.ids)
    assert_distance(abs(model.loss(batch.targets) / batch.loss - 1.0), batch.bounds["loss"], "loss alone")
    loss = model.backward(batch.ids, batch.targets, scaled / case.rows, accumulate=False)
    assert_distance(abs(loss / batch.loss - 1.0), batch.bounds["loss"], "loss")
    model.check_gradients(batch.gradients, batch.bounds, scaled)
