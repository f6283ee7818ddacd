"""The peer of fine-tuning: a model that transformers opens, with all of its weights or adapters of PEFT to train."""

import warnings
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional

from benchmarks.protocol import BF16_MODEL, BF16_WEIGHTS, FineTuning


class FineTuned(nn.Module):  # type: ignore[misc]  # torch has no types here
    """A causal language model of transformers, with PyTorch's fused attention. `forward` returns the mean loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, targets: Any) -> Any:
        """Return the mean loss of ids and targets (B, T), in float32 as that of transformers."""
        logits = self.model(input_ids=ids, use_cache=False).logits.float()
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def build(tuned: FineTuning, precision: str, *, checkpointed: bool) -> FineTuned:
    """Return the model of a folder in training mode without dropout, in one of the precisions of `protocol`."""
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers 5.24 has changed
    dtype = torch.bfloat16 if precision in (BF16_MODEL, BF16_WEIGHTS) else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tuned.model, config=_without_dropout(tuned.model), dtype=dtype, attn_implementation="sdpa"
    )
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if tuned.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(
            model, tuned.adapter, is_trainable=True, autocast_adapter_dtype=precision != BF16_WEIGHTS
        )
    return FineTuned(model.train())


def _without_dropout(folder: str) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    for name in [name for name in vars(config) if "drop" in name and isinstance(getattr(config, name), float)]:
        setattr(config, name, 0.0)
    return config
