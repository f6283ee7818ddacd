"""Compiling the kernels before the run: a tiny training step through every stage, one after another.

Numba compiles a kernel at its first call and keeps the result on disk; the types of its arguments decide, not their
sizes, so a model of a few hundred parameters compiles all that a large one needs. From then on this takes a blink.
Each precision has kernels of its own.
"""

import threading
import time
from collections.abc import Callable

from loguru import logger

from stages.config import Config, ModelConfig, Precision, resolve
from stages.data import RandomTokens, TokenIds
from stages.evaluate import Evaluator
from stages.forward import plan_micro_batches
from stages.items import MicroGradient
from stages.training import Training

SLOW = 1.0
"""Seconds from which loading kernels is worth a line."""


class _Windows:
    """A single micro-batch to evaluate."""

    micro_batches = 1
    tokens = 4

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        ids.fill(0)
        targets.fill(1)


def compile_kernels(say: Callable[[str], None] = logger.info, precision: Precision = Precision.FLOAT32) -> float:
    """Load or compile every kernel that training calls in this precision; returns the seconds that it took.

    `say` hears of it, from another thread, as soon as it takes longer than loading would.
    """
    begin = time.perf_counter()
    # Cached kernels load in a blink; what takes longer is being compiled, and a person should know before it is done.
    notice = threading.Timer(
        SLOW, say, ["compiling the kernels for this processor, once; they are cached from then on"]
    )
    notice.start()
    try:
        _compile(_tiny_training(precision), say)  # in 16 bits the weights' forms are made when it is built
    finally:
        notice.cancel()
        notice.join()
    return time.perf_counter() - begin


def _compile(training: Training, say: Callable[[str], None]) -> None:
    """Run every stage once, in the order of the graph."""
    batch = list(plan_micro_batches(0, 1, 2))
    gradients: list[MicroGradient] = []

    def embed() -> None:
        for item in batch:
            training.draw.acquire(item)
            training.embed.acquire(training.draw(item))
            training.embed(item)

    def forward() -> None:
        for item in batch:
            training.forward(item)

    def backward() -> None:
        gradients.extend(training.backward(item) for item in batch)

    def optimizer() -> None:
        reduced = [training.reduce(shard) for shard in training.collect(gradients)]
        training.clip.acquire(reduced)
        training.publish([training.update(shard) for shard in training.clip(reduced)])

    def evaluation() -> None:
        with training.banks.lease_newest() as lease:
            evaluator = Evaluator(training.compute)
            evaluator.mean_loss(lease.bank, _Windows())

    groups = {
        "embedding": embed, "forward": forward, "backward": backward, "optimizer": optimizer, "evaluation": evaluation,
    }  # fmt: skip
    for name, work in groups.items():
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        if seconds > SLOW:
            say(f"compiled kernels: {name} ({seconds:.1f} s)")


def _tiny_training(precision: Precision) -> Training:
    config = Config(
        name="warm-up",
        model=ModelConfig(vocab_size=3, context=4, layers=1, heads=1, channels=8),
        batch_size=2,
        micro_batch=1,
        lanes=1,
        steps=1,
        precision=precision,
    )
    config = resolve(config, cores=1)
    return Training(config, RandomTokens(3, 4, sequences=2, micro_batch=1, seed=0))
