"""Interoperability of checkpoints: transformers opens them and computes the same loss."""

from pathlib import Path

import numpy as np
import pytest

from tests.error_bounds import mean_loss
from tests.reference import Tensors
from tests.stages.support import story
from threadloom.stages.inference.model import Model
from threadloom.stages.run.session import train

pytestmark = pytest.mark.timeout(120)


def trained(tmp_path: Path, *overrides: str) -> tuple[Path, float]:
    """Train, and return the last checkpoint with the final validation loss of the run over the whole split."""
    config = story(
        tmp_path, "steps=200", "delay=1", "optimizer.lr=1e-2", "evaluation.final_batches=1000", "micro_batch=1",
        *overrides,
    )  # fmt: skip
    outcome = train(config, tmp_path / "run")
    assert outcome.val_loss is not None
    return outcome.run.checkpoint(200), outcome.val_loss


def windows(tmp_path: Path, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and targets of the validation split, as non-overlapping windows, without use of the tested code."""
    tokens = np.load(tmp_path / "run" / "data" / "validation.npy").astype(np.int64)
    count = (len(tokens) - 1) // context
    return tokens[: count * context].reshape(count, context), tokens[1 : count * context + 1].reshape(count, context)


def weights_of(folder: Path) -> Tensors:
    """Return the weights of a checkpoint in float64."""
    return {name: tensor.astype(np.float64) for name, tensor in Model.open(folder).weights._asdict().items()}


def test_the_reference_computes_the_same_validation_loss(tmp_path: Path) -> None:
    folder, val_loss = trained(tmp_path)
    model = Model.open(folder)
    ids, targets = windows(tmp_path, model.geometry.context)
    expected, bound = mean_loss(weights_of(folder), ids, targets, model.geometry.heads)
    assert abs(val_loss - expected) <= bound
    assert val_loss < 2.0, "the model has learned, so that equality is no coincidence"


@pytest.mark.torch
@pytest.mark.filterwarnings("default")  # warnings of the libraries
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("embedding.lattice=e8",),
        ("embedding.layout=primes",),
        ("embedding.layout=kissing", "delay=2"),
        ("embedding.layout=residues", "embedding.moduli=[7,8]", "embedding.own_rows=5"),
        ("embedding.rank=4",),
    ],
    ids=["plain", "lattice", "primes", "kissing", "residues", "rank"],
)
def test_transformers_opens_the_checkpoint_and_computes_the_same_loss(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder, val_loss = trained(tmp_path, *overrides)
    model, report = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, targets = windows(tmp_path, model.config.n_positions)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    _, bound = mean_loss(weights_of(folder), ids, targets, model.config.n_head)
    assert abs(val_loss - float(loss)) <= 2.0 * bound, "both are float32"
