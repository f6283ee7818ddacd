"""Training from Python: the stages of `threadloom train`, assembled by hand.

    python -m examples.train_from_python [FILE_OR_DIR ...]

Without a text, the model is trained on the source of Python's standard library. To train into a run directory instead,
as the command does, call `threadloom.train`.
"""

import sys
import tempfile
from pathlib import Path

import msgspec

from threadloom import Config, RunStatistics, available_cores, load_config
from threadloom.stages.data import ChunkedText, TokenBatches, evaluation_batches, prepare, read_text
from threadloom.stages.memory import Evaluation, Update
from threadloom.stages.resolve import gemm_settings, resolve
from threadloom.stages.step import Validation
from threadloom.stages.training import Training, compile_kernels


def train_on_text(config: Config, text: ChunkedText, folder: Path) -> float:
    """Train on a text, print the progress, and return the validation loss. Token files are written to `folder`."""
    data = prepare(config.data, config.model, text, folder)
    config = resolve(config, available_cores(), data.tokenizer.vocab_size)
    compile_kernels(print, config.precision, config.model.architecture, config.delay_correction)
    windows = evaluation_batches(data.validation, batch_size=12, micro_batch=config.micro_batch, batches=20)
    training = Training(config, TokenBatches(data.train, config.batch_sizes, config.seed), Validation(windows, windows))
    loss = float("nan")
    with gemm_settings(config), training.graph().start(resources=training.resources) as run:
        for event in run:
            if isinstance(event, Update) and event.step % 50 == 0:
                print(f"update {event.step}: loss {event.loss:.4f}, gradient norm {event.grad_norm:.3f}")
            elif isinstance(event, Evaluation):
                loss = event.val_loss
                print(f"update {event.step}: validation loss {loss:.4f}")
    print_stages(run.statistics())
    print(f"batches by staleness of the weights that they read: {dict(training.banks.statistics().staleness)}")
    return loss


def print_stages(statistics: RunStatistics) -> None:
    """Print how each stage spent its time; the busiest stage is the bottleneck."""
    print(f"\n{'stage':>10} {'threads':>8} {'items':>8} {'busy':>6} {'waiting':>8} {'blocked':>8}")
    for stage in statistics.values():
        shares = f"{stage.busy_share:6.0%} {stage.waiting_share:8.0%} {stage.blocked_share:8.0%}"
        print(f"{stage.name:>10} {stage.workers:8} {stage.items_out:8} {shares}")


def main(texts: tuple[str, ...] = (), steps: int = 200, config: Config | None = None) -> float:
    """Train the small character model for some seconds at delay 1: the optimizer overlaps with forward and backward."""
    config = msgspec.structs.replace(config or load_config("nanogpt-cpu"), steps=steps, delay=1)
    with tempfile.TemporaryDirectory() as folder:
        return train_on_text(config, read_text(texts), Path(folder))


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
