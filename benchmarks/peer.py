"""The peer: the same GPT-2 in idiomatic PyTorch, trained step by step in a separate process.

It imports none of threadloom's numerical packages, so that its memory is PyTorch's alone. Weights and tokens for the
comparison of results come from files: `weights.safetensors` under threadloom's names, with matrices as (in, out), and
`tokens.npz` with the ids and targets of each update.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.nn import functional

from benchmarks.protocol import FLOAT32, Side, TrainingSizes, UpdateFigures


class TransformerBlock(nn.Module):  # type: ignore[misc]  # torch has no types here
    """Attention and MLP, each after its LayerNorm, each added to the residual stream."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.attn_proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.fc, self.mlp_proj = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Any) -> Any:
        """Apply the block to (B, T, C)."""
        batch, length, channels = x.shape
        parts = self.qkv(self.ln1(x)).split(channels, 2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        attn = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(attn.transpose(1, 2).reshape(batch, length, channels))
        return x + self.mlp_proj(functional.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT(nn.Module):  # type: ignore[misc]
    """GPT-2 with tied embeddings and learned positions. `forward` returns the mean loss."""

    def __init__(self, sizes: TrainingSizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(sizes.vocabulary, sizes.channels)
        self.wpe = nn.Embedding(sizes.context, sizes.channels)
        self.blocks = nn.ModuleList([TransformerBlock(sizes.channels, sizes.heads) for _ in range(sizes.layers)])
        self.lnf = nn.LayerNorm(sizes.channels)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.02)

    def forward(self, ids: Any, targets: Any) -> Any:
        """Return the mean loss of ids and targets (B, T)."""
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.lnf(x), self.wte.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def load_weights(model: GPT, file: Path) -> None:
    """Copy weights with threadloom's names and layout into the model."""
    ours = {name: torch.from_numpy(array) for name, array in load_file(file).items()}
    with torch.no_grad():
        for name in ("wte", "wpe"):
            getattr(model, name).weight.copy_(ours[name])
        model.lnf.weight.copy_(ours["lnf_weight"])
        model.lnf.bias.copy_(ours["lnf_bias"])
        for number, block in enumerate(model.blocks):
            for name in ("ln1", "qkv", "attn_proj", "ln2", "fc", "mlp_proj"):
                part, weight = getattr(block, name), ours[f"{name}_weight"][number]
                part.weight.copy_(weight.T if weight.dim() == 2 else weight)
                part.bias.copy_(ours[f"{name}_bias"][number])


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
        shape = (self.sizes.sequences, self.sizes.context)
        while True:
            ids, targets = (torch.randint(0, self.sizes.vocabulary, shape) for _ in range(2))
            yield ids, targets


class PyTorch:
    """Eager or compiled training with fused AdamW and clipping, on `sizes.threads` threads.

    In a precision other than float32, forward runs under autocast to bfloat16, as in PyTorch's recipes for CPUs.
    """

    def __init__(self, sizes: TrainingSizes, side: Side, precision: str, folder: Path | None = None) -> None:
        self._autocast = precision != FLOAT32
        torch.set_num_threads(sizes.threads)
        torch.manual_seed(0)
        self._model = GPT(sizes)
        if folder:
            load_weights(self._model, folder / "weights.safetensors")
        self._run: Any = torch.compile(self._model) if side is Side.COMPILED else self._model
        matrices = [p for p in self._model.parameters() if p.dim() > 1]
        vectors = [p for p in self._model.parameters() if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": sizes.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=sizes.lr, betas=(sizes.beta1, sizes.beta2), eps=sizes.eps, fused=True
        )
        self._clip = sizes.clip
        self._batches = iter(FileTokens(folder / "tokens.npz") if folder else EndlessTokens(sizes))

    def run(self, updates: int) -> UpdateFigures:
        """Make `updates` updates and return their figures."""
        losses, norms = [], []
        begin = time.perf_counter()
        for _ in range(updates):
            ids, targets = next(self._batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                loss = self._run(ids, targets)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._clip or float("inf"))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            norms.append(norm.item())
        return UpdateFigures(time.perf_counter() - begin, losses, norms)

    def close(self) -> None:
        """Do nothing: PyTorch keeps no thread of a training."""
