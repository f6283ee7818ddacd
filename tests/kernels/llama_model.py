"""A whole Llama computed by the float32 kernels as the stages do, and compared with the reference."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tests.error_bounds import IN_FLOAT32, Storage, llama_bounds
from tests.kernels.comparison import assert_close, assert_distance
from tests.kernels.llama_support import LLAMA_LINEAR, LlamaCase, gradient_shapes
from tests.kernels.model import MicroBatchModel
from tests.kernels.support import DROPOUT_KEY, Guarded, clear_outside_blocks, flat_ids, lora_ranks
from tests.reference import Array, Ids, Tensors, cross_entropy_forward, llama as reference
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.embedding import token_embedding_backward
from threadloom.kernels.common.protocol import ModelKernels
from threadloom.kernels.common.tensors import ATTENTION_TILE, LlamaWeights
from threadloom.kernels.float32 import llama
from threadloom.kernels.float32.embedding import token_embedding_forward
from threadloom.kernels.float32.llama import blocks_forward, head_loss
from threadloom.kernels.float32.tensors import LlamaActivations, LlamaScratch


class LlamaModel(MicroBatchModel):
    """A Llama in any number format."""

    sizes: LlamaCase
    grads: LlamaWeights

    def scatter(self, ids: Ids, accumulate: bool) -> None:
        """Write or add the gradient of the token embedding."""
        tied = self.sizes.sizes.tied
        token_embedding_backward(flat_ids(ids), self.scratch.dx, self.grads.wte, accumulate or tied)


def tensors_of(case: LlamaCase, tensors: Tensors) -> dict[str, Array]:
    """Return a tensor for every field of `LlamaWeights` but `head`, if that is tied."""
    found = {name: tensors.get(name, np.zeros(case.shape(name))) for name in LlamaWeights._fields}
    if case.sizes.tied:
        del found["head"]
    return found


@dataclass
class LlamaFloat32(LlamaModel):
    """Weights, gradients, activations and scratch for micro-batches of one size."""

    sizes: LlamaCase
    tensors: Tensors
    logits_rows: int = 3
    frozen: frozenset[str] = frozenset()
    kernels: ClassVar[ModelKernels[Any, Any, Any, Any, Any]] = llama
    memory: Guarded = field(default_factory=Guarded)

    def __post_init__(self) -> None:
        case, memory = self.sizes, self.memory
        weights = {name: memory.copy(tensor) for name, tensor in tensors_of(case, self.tensors).items()}
        grads = {name: memory.empty(*shape) for name, shape in gradient_shapes(case, self.frozen).items()}
        if case.sizes.tied:
            weights["head"], grads["head"] = weights["wte"], grads["wte"]
        self.weights, self.grads = LlamaWeights(**weights), LlamaWeights(**grads)
        clear_outside_blocks(self.grads, case.sizes.lora)
        self.acts, self.scratch = self._activations(), self._scratch()

    @property
    def _dropped(self) -> int:
        case, s = self.sizes, self.sizes.sizes
        widest = max(s.channels, case.attn_width, s.mlp_width)
        return case.rows * widest if s.lora and s.lora.dropout else 0

    def _activations(self) -> LlamaActivations:
        case, s, empty = self.sizes, self.sizes.sizes, self.memory.empty
        n, r, c = s.layers, case.rows, s.channels
        return LlamaActivations(
            x=empty(n + 1, r, c), rstd1=empty(n, r), qkv=empty(n, r, case.qkv_width),
            qk_raw=empty(n, r, case.raw_width), attn=empty(n, r, case.attn_width),
            attn_lse=empty(n, case.sequences, s.heads, case.tokens), x_mid=empty(n, r, c), rstd2=empty(n, r),
            gate_up=empty(n, r, 2 * s.mlp_width), h=empty(r, c), gated=empty(r, s.mlp_width),
            scores=empty(ATTENTION_TILE, case.context),
            **{f"{name}_xa": empty(n, r, lora_ranks(s.lora, name)) for name in LLAMA_LINEAR},
            dropout_key=np.full(1, DROPOUT_KEY, np.uint64), starts=NO_BORDERS, dropped=empty(self._dropped),
        )  # fmt: skip

    def _scratch(self) -> LlamaScratch:
        case, s, empty = self.sizes, self.sizes.sizes, self.memory.empty
        r, c = case.rows, s.channels
        return LlamaScratch(
            dx=empty(r, c), dh=empty(r, c), d_attn=empty(r, case.attn_width), d_qkv=empty(r, case.qkv_width),
            d_gated=empty(r, s.mlp_width), d_gate_up=empty(r, 2 * s.mlp_width), gated=empty(r, s.mlp_width),
            h=empty(r, c), scores=empty(2, ATTENTION_TILE, case.context),
            logits=empty(self.logits_rows, s.vocabulary), normf_rstd=empty(r),
            d_xa=empty(r * max(lora_ranks(s.lora, name) for name in LLAMA_LINEAR)), dropped=empty(self._dropped),
        )  # fmt: skip

    def forward(self, ids: Ids) -> None:
        """Fill the activations."""
        token_embedding_forward(self.weights.wte, flat_ids(ids), self.acts.x[0])
        blocks_forward(self.weights, self.acts, self.sizes.sequences, self.sizes.constants)

    def loss(self, targets: Ids) -> float:
        """Return the sum of the losses, without gradients."""
        return head_loss(self.weights, self.acts, flat_ids(targets), self.sizes.constants, self.scratch.logits)

    def check_gradients(self, expected: Tensors, bounds: Mapping[str, float]) -> None:
        """Compare every gradient with the reference's."""
        for name, tensor in expected.items():
            assert_close(getattr(self.grads, name), tensor, bounds[name], name)
        self.memory.check()


class LlamaBatch(NamedTuple):
    """A micro-batch, the results of the reference, and how far the kernels' may be from them."""

    tensors: Tensors
    ids: Ids
    targets: Ids
    loss: float  # sum of the tokens'
    x_final: Array
    gradients: Tensors  # of the mean of the tokens' losses
    bounds: dict[str, float]


def batch_of(case: LlamaCase, tensors: Tensors, rng: np.random.Generator, storage: Storage = IN_FLOAT32) -> LlamaBatch:
    """Return a random micro-batch."""
    ids, targets, scale = case.ids(rng), case.targets(rng), 1.0 / case.rows
    record = reference.forward(tensors, ids, case.sizes)
    loss = float(cross_entropy_forward(record.logits, targets).sum())
    gradients, _ = reference.backward(tensors, record, targets, scale)
    bounds = llama_bounds(tensors, ids, targets, case.sizes, scale, storage)
    return LlamaBatch(tensors, ids, targets, loss, record.x_final, gradients, bounds)


@lru_cache(maxsize=8)  # in chunks of every size
def make_batch(case: LlamaCase, seed: int) -> LlamaBatch:
    """Return a random micro-batch of a random model."""
    rng = np.random.default_rng(seed)
    return batch_of(case, case.sizes.random_tensors(rng), rng)


def check_llama(case: LlamaCase, seed: int = 0, logits_rows: int = 3) -> None:
    """Compare activations, loss and every gradient of one micro-batch with the reference."""
    batch = make_batch(case, seed)
    model = LlamaFloat32(case, batch.tensors, logits_rows)
    model.forward(batch.ids)
    assert_close(model.acts.x[case.sizes.layers], batch.x_final, batch.bounds["x_final"], "x_final")
    assert_distance(abs(model.loss(batch.targets) / batch.loss - 1.0), batch.bounds["loss"], "loss alone")
    loss = model.backward(batch.ids, batch.targets, 1.0 / case.rows, accumulate=False)
    assert_distance(abs(loss / batch.loss - 1.0), batch.bounds["loss"], "loss")
    model.check_gradients(batch.gradients, batch.bounds)
