"""User-defined stages: a pipeline of three, and an additional stage in the graph of a training.

    python -m examples.custom_stage

The additional stage measures how far each update changes each tensor, relative to the norm of the tensor: about 1e-3 is
healthy, much more indicates too high a learning rate. It runs on a separate thread and reads a leased version of the
weights, so that it sees complete versions, the training continues in parallel, and no bit of the weights changes.
"""

import hashlib
from collections.abc import Mapping

import msgspec
import numpy as np

from threadloom import Config, Graph, Node, RunStatistics, available_cores, load_config
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.data import RandomTokens
from threadloom.stages.memory import Update
from threadloom.stages.resolve import gemm_settings, resolve
from threadloom.stages.training import Training, compile_kernels


def checksums(blocks: int = 64, size: int = 1 << 16) -> tuple[dict[int, str], RunStatistics]:
    """Create blocks, hash them on two threads, and shorten the digests: three stages, without any model."""
    graph = Graph("checksums")
    numbers = graph.source("numbers", range(blocks))
    created = graph.stage("create", lambda number: (number, bytes([number % 256]) * size), after=numbers)
    hashed = graph.stage(
        "hash", lambda block: (block[0], hashlib.sha256(block[1]).hexdigest()), after=created, workers=2
    )
    short = graph.stage("shorten", lambda pair: (pair[0], pair[1][:12]), after=hashed)
    digests = graph.sink("digests", after=short)
    with graph.start() as run:
        return dict(run.items(digests)), run.statistics()


class UpdateRatios:
    """A stage after `publish`: ‖w_j - w_i‖ / ‖w_i‖ of every tensor, between the versions that it reads."""

    def __init__(self, training: Training) -> None:
        self._banks = training.banks
        self._version, self._before = self._read_weights()
        self.ratios: dict[int, Mapping[str, float]] = {}
        """Version → tensor → relative change per update since the previously read version."""

    def __call__(self, update: Update) -> None:
        """Compare the newest version, which is that of `update` or a later one, with the previous one."""
        version, now = self._read_weights()
        updates = version - self._version
        if updates:
            self.ratios[version] = {
                name: float(np.linalg.norm(now[name] - old) / max(float(np.linalg.norm(old)), 1e-12)) / updates
                for name, old in self._before.items()
            }
        self._version, self._before = version, now

    def _read_weights(self) -> tuple[int, dict[str, np.ndarray]]:
        with self._banks.lease_newest() as lease:  # this bank is not written to until the block ends
            return lease.version, {name: tensor.copy() for name, tensor in lease.bank.arena.items()}


def watched_training(config: ResolvedConfig, every: int = 10) -> UpdateRatios:
    """Train on random tokens with the stage in the graph; it receives every `every`-th update."""
    training = Training(config, RandomTokens(config.geometry(), config.batch_sizes, config.seed))
    watch = UpdateRatios(training)
    graph = training.graph()
    graph.stage("ratios", watch, after=Node[Update]("publish", graph), when=lambda update: update.step % every == 0)
    with gemm_settings(config), graph.start(resources=training.resources) as run:
        for event in run:
            if isinstance(event, Update) and event.step % every == 0:
                print(f"update {event.step}: loss {event.loss:.4f}")
    stage = run.statistics()["ratios"]
    print(f"ratios: {stage.items_in} calls, {stage.busy:.3f} s of work during {run.statistics().elapsed:.1f} s")
    return watch


def main(steps: int = 60, config: Config | None = None) -> UpdateRatios:
    """Run the pipeline, then the training."""
    digests, statistics = checksums()
    hashing = statistics["hash"]
    print(f"{len(digests)} blocks hashed by {hashing.workers} threads, {hashing.busy_share:.0%} busy: {digests[0]} ...")
    compile_kernels(print)
    config = config or load_config("nanogpt-cpu")
    config = msgspec.structs.replace(config, steps=steps)
    watch = watched_training(resolve(config, available_cores(), 65 if config.model.vocab_size is None else None))
    last = watch.ratios[max(watch.ratios)]
    matrices = {name: ratio for name, ratio in last.items() if not name.endswith("bias")}  # biases start at 0
    for name, ratio in sorted(matrices.items(), key=lambda pair: -pair[1])[:5]:
        print(f"{name:>20} changes by {ratio:.1e} of its norm per update")
    return watch


if __name__ == "__main__":
    main()
