"""Compiling the kernels before the run: a tiny training step through every stage, one after another.

Numba compiles a kernel at its first call and keeps the result on disk; the types of its arguments decide, not their
sizes, so a model of a few hundred parameters compiles all that a large one needs. From then on this takes a blink.
"""

import time
from collections.abc import Callable

from loguru import logger

from stages.config import Config, ModelConfig, resolve
from stages.data import RandomTokens, TokenIds
from stages.evaluate import Evaluator
from stages.forward import plan_micro_batches
from stages.items import MicroGradient
from stages.training import Training

SLOW = 1.0
"""Seconds from which loading one group of kernels is worth a line."""


class _Windows:
    """A single micro-batch to evaluate."""

    micro_batches = 1
    tokens = 4

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        ids.fill(0)
        targets.fill(1)


def compile_kernels(say: Callable[[str], None] = logger.info) -> float:
    """Load or compile every kernel that training calls; returns the seconds that it took.

    `say` hears of each group as it is begun when the first of them shows that nothing is cached.
    """
    begin = time.perf_counter()
    training = _tiny_training()
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
            evaluator = Evaluator(training.config.model.geometry(), 1)
            evaluator.mean_loss(lease.bank.weights, _Windows())

    cold = False
    for name, work in {
        "embedding": embed, "forward": forward, "backward": backward, "optimizer": optimizer, "evaluation": evaluation,
    }.items():  # fmt: skip
        if cold:
            say(f"compiling kernels: {name}")
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        if seconds > SLOW and not cold:
            cold = True
            say("compiling the kernels for this processor, once; they are cached for every later run")
        if cold:
            say(f"compiled kernels: {name} ({seconds:.1f} s)")
    return time.perf_counter() - begin


def _tiny_training() -> Training:
    config = Config(
        name="warm-up",
        model=ModelConfig(vocab_size=3, context=4, layers=1, heads=1, channels=8),
        batch_size=2,
        micro_batch=1,
        lanes=1,
        steps=1,
    )
    config = resolve(config, cores=1)
    return Training(config, RandomTokens(3, 4, sequences=2, micro_batch=1, seed=0))
