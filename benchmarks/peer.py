"""The peer: the same model in PyTorch, trained step by step in a separate process.

It imports none of threadloom's numerical packages, so that its memory is PyTorch's alone. Weights and tokens for the
comparison of results come from files: `weights.safetensors` under threadloom's names, with matrices as (in, out), and
`tokens.npz` with the ids and targets of each update.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.model_sizes import Gpt2Sizes, LlamaSizes, ModelSizes
from benchmarks.protocol import BF16_WEIGHTS, FLOAT32, Side, TrainingSizes, UpdateFigures


def build_model(sizes: ModelSizes, weights: Path | None = None) -> Any:
    """Return a module that computes the mean loss of ids and targets (B, T), with random weights or those of a file.

    Only the libraries of its architecture are loaded, since they take memory.
    """
    match sizes:
        case Gpt2Sizes():
            from benchmarks import peer_gpt2

            return peer_gpt2.build(sizes, weights)
        case LlamaSizes():
            from benchmarks import peer_llama

            return peer_llama.build(sizes, weights)


def _model(sizes: TrainingSizes, side: Side, precision: str, folder: Path | None) -> Any:
    """Return the model to train: a new one, or the one that fine-tuning starts from."""
    if sizes.fine_tuning:
        from benchmarks import finetune_peer

        return finetune_peer.build(sizes.fine_tuning, precision, checkpointed=side is Side.CHECKPOINTED)
    return build_model(sizes.model, folder and folder / "weights.safetensors")


@dataclass(frozen=True)
class FileTokens:
    """Token batches from a file, one per update."""

    file: Path

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        with np.load(self.file, allow_pickle=False) as arrays:
            for ids, targets in zip(arrays["ids"], arrays["targets"], strict=True):
                yield torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))


@dataclass(frozen=True)
class EndlessTokens:
    """Endless random tokens."""

    sizes: TrainingSizes

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        shape = (self.sizes.sequences, self.sizes.model.context)
        while True:
            ids, targets = (torch.randint(0, self.sizes.model.vocabulary, shape) for _ in range(2))
            yield ids, targets


class PyTorch:
    """Eager or compiled training with fused AdamW and clipping, on `sizes.threads` threads.

    In a precision other than float32, forward runs under autocast to bfloat16, as in PyTorch's recipes for CPUs, unless
    all weights are in bfloat16.
    """

    def __init__(self, sizes: TrainingSizes, side: Side, precision: str, folder: Path | None = None) -> None:
        self._autocast = precision not in (FLOAT32, BF16_WEIGHTS)
        torch.set_num_threads(sizes.threads)
        torch.manual_seed(0)
        self._model = _model(sizes, side, precision, folder)
        self._run: Any = torch.compile(self._model) if side is Side.COMPILED else self._model
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        matrices = [p for p in self._trained if p.dim() > 1]
        vectors = [p for p in self._trained if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": sizes.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=sizes.lr, betas=(sizes.beta1, sizes.beta2), eps=sizes.eps, fused=True
        )
        self._clip = sizes.clip
        self._rates = iter(sizes.rates) if sizes.rates else itertools.repeat(sizes.lr)
        self._batches = iter(FileTokens(folder / "tokens.npz") if folder else EndlessTokens(sizes))

    def run(self, updates: int) -> UpdateFigures:
        """Make `updates` updates and return their figures."""
        losses, norms = [], []
        begin = time.perf_counter()
        for rate in itertools.islice(self._rates, updates):
            ids, targets = next(self._batches)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                loss = self._run(ids, targets)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self._trained, self._clip or float("inf"))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            norms.append(norm.item())
        return UpdateFigures(time.perf_counter() - begin, losses, norms)

    def close(self) -> None:
        """Do nothing: PyTorch keeps no thread of a training."""
