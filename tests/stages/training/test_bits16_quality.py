"""Quality of training in 16 bits: 200 updates of a small model on one text, in every precision."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.config import Config, Gpt2Config
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.run.session import train
from threadloom.stages.storage import read_metrics

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler"),
]

UPDATES = 200
SOURCES = ("argparse.py", "dataclasses.py", "statistics.py")
"""Part of the standard library, a text that every machine has."""


def losses(precision: str, folder: Path, delay: int, lr: str, seed: int = 4) -> tuple[float, list[float]]:
    """Train, and return the final validation loss and the loss of every update."""
    text = folder / "text.txt"
    library = Path(sysconfig.get_path("stdlib"))
    text.write_text("".join((library / name).read_text(encoding="utf-8") for name in SOURCES), encoding="utf-8")
    model = Gpt2Config(context=64, layers=2, heads=4, channels=64)
    base = Config(name="quality", model=model, batch_size=16, micro_batch=4, lanes=2, steps=UPDATES, seed=seed)
    config = apply_overrides(
        base,
        (f'data.text=["{text}"]', f"optimizer.lr={lr}", "schedule.warmup=20", f"delay={delay}", "trace.batches=0",
         "evaluation.batches=8", "evaluation.final_batches=8", f"precision={precision}", "gemm_backend=numba"),
    )  # fmt: skip
    run = folder / f"{precision}-{seed}"
    outcome = train(config, run, tuned=False)
    assert outcome.config.precision.value == precision
    assert outcome.val_loss is not None
    records = [r for r in read_metrics(run / "metrics.jsonl") if "loss" in r]
    return outcome.val_loss, [record["loss"] for record in records]


@pytest.mark.soak
@pytest.mark.parametrize(("delay", "lr"), [(0, "3e-3"), (1, "1e-3"), (2, "5e-4")])
def test_200_updates_end_where_float32_ends(delay: int, lr: str, tmp_path: Path) -> None:
    """A precision changes the result less than the seed does, at a learning rate at which training is not chaotic.

    Compared are the final validation loss and the mean of the last 20 training losses, which vary less than single
    ones. Each bound is the range of float32 over three seeds.
    """
    expected, trained = losses("float32", tmp_path, delay, lr)
    assert len(trained) == UPDATES
    assert expected < 3.2, "the loss has decreased from ln 90 = 4.5"
    others = [losses("float32", tmp_path, delay, lr, seed) for seed in (5, 6)]
    of_validation = float(np.ptp([expected, *(other[0] for other in others)]))
    of_training = float(np.ptp([np.mean(along[-20:]) for along in (trained, *(other[1] for other in others))]))
    for precision in ("bf16x3", "bf16", "fp16"):
        found, along = losses(precision, tmp_path, delay, lr)
        print(f"delay {delay}, {precision}: {found:.4f}, float32 {expected:.4f}")  # noqa: T201
        assert len(along) == UPDATES
        assert along != trained, "the run did not compute in float32"
        assert np.isfinite(along).all()
        assert abs(found - expected) < of_validation
        assert abs(np.mean(along[-20:]) - np.mean(trained[-20:])) < of_training
