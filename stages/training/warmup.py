"""Compiling the kernels before the run: a tiny training step through every stage, one after another.

Numba compiles a kernel at its first call and keeps the result on disk; the types of its arguments decide, not their
sizes, so a model of a few hundred parameters compiles all that a large one needs. From then on this takes a blink.
Each precision has kernels of its own.

Numba compiles one kernel at a time in a process. So where something has to be compiled, a second process compiles the
backward pass, the largest part, while this one compiles the rest, and this one loads it from the cache then.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from loguru import logger
from numba.core import event

from threadloom.pipeline import available_cores
from threadloom.stages.config import Config, ModelConfig, Precision
from threadloom.stages.console import module_command
from threadloom.stages.data import RandomTokens, TokenIds
from threadloom.stages.memory import MicroGradient
from threadloom.stages.resolve import resolve
from threadloom.stages.step import ValidationLoss, plan_micro_batches
from threadloom.stages.training.training import Training

Say = Callable[[str], None]
"""What hears of it, from whichever thread."""
SLOW = 1.0
"""Seconds from which loading kernels is worth a line."""
EVERY = 5.0
"""Seconds between two lines about how far compiling is."""


class _Windows:
    """A single micro-batch to evaluate."""

    micro_batches = 1
    tokens = 4

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        ids.fill(0)
        targets.fill(1)


def compile_kernels(say: Say = logger.info, precision: Precision = Precision.FLOAT32) -> float:
    """Load or compile every kernel that training calls in this precision; returns the seconds that it took.

    `say` hears of it, from another thread, as soon as it takes longer than loading would.
    """
    begin = time.perf_counter()
    with _Progress(say) as progress:
        rehearsal = _Rehearsal(precision)  # in 16 bits the weights' forms are made, and their kernels compiled, here
        _compile(rehearsal, precision, say, progress)
    return time.perf_counter() - begin


class _Progress(event.Listener):  # type: ignore[misc]  # Numba has no types
    """Says from a thread of its own that kernels are being compiled, and how many have been, until the block ends.

    Cached kernels load in a blink: of those nothing is said. What takes longer a person should hear of meanwhile.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self.compiled = 0  # written by the thread that compiles
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._report, name="compiling")

    def __enter__(self) -> Self:
        event.register("numba:compile", self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        event.unregister("numba:compile", self)

    def on_start(self, event: event.Event) -> None:
        """Nothing is done yet."""

    def on_end(self, event: event.Event) -> None:
        """Count a kernel."""
        self.compiled += 1

    def _report(self) -> None:
        if self._over.wait(SLOW):
            return
        self._say("compiling the kernels for this processor, once, which takes about half a minute; they are cached")
        while not self._over.wait(EVERY):
            self._say(f"compiling: {self.compiled} kernels so far")


class _Rehearsal:
    """A tiny training whose stages are called one after another, in any order: only `embedding` has to come first."""

    def __init__(self, precision: Precision) -> None:
        self._training = _tiny_training(precision)
        self._batch = list(plan_micro_batches(0, 1, 2))
        self._gradients: list[MicroGradient] = []

    def embedding(self) -> None:
        """Draw and embed the batch."""
        for item in self._batch:
            self._training.draw.acquire(item)
            self._training.embed.acquire(self._training.draw(item))
            self._training.embed(item)

    def forward(self) -> None:
        """Run the blocks."""
        for item in self._batch:
            self._training.forward(item)

    def backward(self) -> None:
        """Run head and blocks backwards."""
        self._gradients.extend(self._training.backward(item) for item in self._batch)

    def optimizer(self) -> None:
        """Reduce, clip, update, publish; `backward` has to come before."""
        training = self._training
        reduced = [training.reduce(shard) for shard in training.collect(self._gradients)]
        training.clip.acquire(reduced)
        training.publish([training.update(shard) for shard in training.clip(reduced)])

    def evaluation(self) -> None:
        """Evaluate the newest version."""
        with self._training.banks.lease_newest() as lease:
            ValidationLoss(self._training.compute).mean_loss(lease.bank, _Windows())


def _compile(rehearsal: _Rehearsal, precision: Precision, say: Say, progress: _Progress) -> None:
    def do(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        if seconds > SLOW:
            say(f"compiled kernels: {name} ({seconds:.1f} s)")

    do("embedding", rehearsal.embedding)
    with _helper(precision, wanted=progress.compiled > 0 and available_cores() > 1, say=say) as wait:
        do("forward", rehearsal.forward)
        do("evaluation", rehearsal.evaluation)
        do("backward, in a second process", wait)
        do("backward", rehearsal.backward)
        do("optimizer", rehearsal.optimizer)


@contextmanager
def _helper(precision: Precision, wanted: bool, say: Say = logger.info) -> Iterator[Callable[[], object]]:
    """Compile the backward pass in another process, and give a function that waits for it; it does not outlive this.

    If it fails, nothing is lost but time: what it did not compile is compiled here.
    """
    if not wanted:
        yield lambda: None
        return
    command = module_command("threadloom.stages.training.warmup", precision.value)
    null = subprocess.DEVNULL
    # Nothing is said to its input, which ends when this process does, however it does, and the other one with it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null) as process:

        def wait() -> None:
            if status := process.wait():
                say(f"the second process that compiles ended with status {status}: this will take longer")

        try:
            yield wait
        finally:
            process.kill()


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however it did."""
    os.read(sys.stdin.fileno(), 1)  # not through the buffer, whose lock Python needs at its end
    os._exit(1)


def _help(precision: Precision) -> None:
    """Compile the backward pass: its kernels take the same types whatever is in the activations."""
    rehearsal = _Rehearsal(precision)
    rehearsal.embedding()
    rehearsal.backward()


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


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _help(Precision(sys.argv[1]))
