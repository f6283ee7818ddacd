"""The same GPT-2 in idiomatic PyTorch."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from benchmarks.model_sizes import Gpt2Sizes


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

    def __init__(self, sizes: Gpt2Sizes) -> None:
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
    ours = load_file(file)
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


def build(sizes: Gpt2Sizes, weights: Path | None) -> GPT:
    """Return the model, with the weights of a file if one is given."""
    model = GPT(sizes)
    if weights:
        load_weights(model, weights)
    return model
