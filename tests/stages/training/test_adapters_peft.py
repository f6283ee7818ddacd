"""Adapters that PEFT made train here as with PEFT and PyTorch, and return to PEFT from a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.stages.checkpoint.test_adapters_peft import TIED, made_by_peft, opened
from tests.stages.checkpoint.test_exporting_transformers import saved
from tests.stages.support import TINY, run_threads
from threadloom.stages.checkpoint import AdaptedWeights, BaseModel, FolderWeights
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.data.batches import RandomTokens
from threadloom.stages.memory.graph_items import Update
from threadloom.stages.resolve import apply_overrides, resolve, with_initial_model
from threadloom.stages.step.saving import CheckpointOutput
from threadloom.stages.training.training import Training

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

UPDATES = 10
ALLOWED = 1e-4
"""Largest difference of two losses, as in `test_pytorch`, and of two weights, which move by lr · UPDATES = 0.1."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": "all-linear", "use_rslora": True, "modules_to_save": ["model.norm"]}),
    "llama, tied embedding": ("llama-tied", {"target_modules": ["q_proj", "down_proj"], **TIED}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"]}),
}


def batches(config: ResolvedConfig, source: RandomTokens) -> list[NDArray[np.int64]]:
    """Return the ids and targets of each update, (2, sequences, context)."""
    size = config.micro_batch * config.model.context
    found = []
    for batch in range(config.steps):
        parts = np.empty((config.micro_batches, 2, size), np.int32)
        for micro, (ids, targets) in enumerate(parts):
            source.fill(batch, micro, ids, targets)
        found.append(np.stack([parts[:, side].reshape(-1, config.model.context) for side in (0, 1)]).astype(np.int64))
    return found


def trained_by_peft(model: Path, adapter: Path, config: ResolvedConfig, inputs: list[NDArray[np.int64]]) -> Any:
    """Train the adapters with PyTorch; return the losses and the model."""
    import torch
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(opened(model), adapter, is_trainable=True).eval()  # no dropout
    trained = [tensor for tensor in adapted.parameters() if tensor.requires_grad]
    groups = [
        {"params": [tensor for tensor in trained if tensor.ndim > 1], "weight_decay": config.optimizer.weight_decay},
        {"params": [tensor for tensor in trained if tensor.ndim == 1], "weight_decay": 0.0},
    ]
    betas = (config.optimizer.beta1, config.optimizer.beta2)
    optimizer = torch.optim.AdamW(groups, config.optimizer.lr, betas, config.optimizer.eps)
    losses = []
    for ids, targets in inputs:
        predicted = adapted(torch.from_numpy(ids)).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(predicted, torch.from_numpy(targets).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, adapted


@pytest.mark.parametrize("case", CASES)
def test_adapters_of_peft_train_as_with_pytorch(case: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import PeftModel, get_peft_model_state_dict

    name, settings = CASES[case]
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    saved(name, model)
    made_by_peft(model, adapter, settings)
    # With the usual epsilon, AdamW divides the rounding error of a gradient that is nearly zero by itself.
    fixed = ("schedule.kind=constant", "schedule.warmup=0", "optimizer.eps=1e-3")
    changes = ("model.context=9", f"steps={UPDATES}", *fixed)
    config = resolve(apply_overrides(with_initial_model(TINY, adapter), changes), cores=2)
    source = RandomTokens(config.geometry(), config.batch_sizes, config.seed)
    expected, theirs = trained_by_peft(model, adapter, config, batches(config, source))

    weights = AdaptedWeights(FolderWeights(model, config.geometry()), adapter, config.geometry())
    output = CheckpointOutput(tmp_path, base=BaseModel.of(model))
    training = Training(config, source, output=output, initial=weights)
    found = [event.loss or 0.0 for event in run_threads(training) if isinstance(event, Update)]
    assert np.abs(np.subtract(found, expected)).max() <= ALLOWED
    returned = get_peft_model_state_dict(PeftModel.from_pretrained(opened(model), tmp_path / f"step-{UPDATES:06d}"))
    start = get_peft_model_state_dict(PeftModel.from_pretrained(opened(model), adapter))
    wanted = get_peft_model_state_dict(theirs)
    assert returned.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (returned[key] - tensor).abs().max() <= ALLOWED, key
        assert (start[key] - tensor).abs().max() > 100 * ALLOWED, "the training has changed it"
