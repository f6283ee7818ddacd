"""Stages of one's own: a pipeline of three, and one more in the graph of a training.

    python -m examples.custom_stage

The stage in the training watches how far each update moves each tensor, as a part of the tensor's size: about 1e-3 is
healthy, far more is too high a learning rate. It has a thread of its own and reads a leased version of the weights, so
it sees whole versions only, the training goes on meanwhile, and not a bit of the weights comes out differently.
"""

import hashlib
from collections.abc import Mapping

import msgspec
import numpy as np

from threadloom.kernels import Weights
from threadloom.pipeline import Graph, Node, RunStatistics, available_cores
from threadloom.stages.config import Config, ResolvedConfig
from threadloom.stages.data import RandomTokens
from threadloom.stages.memory import Update
from threadloom.stages.resolve import gemm_settings, load_config, resolve
from threadloom.stages.training import Training, compile_kernels


def checksums(blocks: int = 64, size: int = 1 << 16) -> tuple[dict[int, str], RunStatistics]:
    """Make blocks, hash them on two threads, and shorten the digests: three stages, nothing to do with models."""
    graph = Graph("checksums")
    numbers = graph.source("numbers", range(blocks))
    made = graph.stage("make", lambda number: (number, bytes([number % 256]) * size), after=numbers)
    hashed = graph.stage("hash", lambda block: (block[0], hashlib.sha256(block[1]).hexdigest()), after=made, workers=2)
    short = graph.stage("shorten", lambda pair: (pair[0], pair[1][:12]), after=hashed)
    digests = graph.sink("digests", after=short)
    with graph.start() as run:
        return dict(run.items(digests)), run.statistics()


class UpdateRatios:
    """A stage that comes after `publish`: ‖w_j - w_i‖ / ‖w_i‖ of every tensor, between the versions that it meets."""

    def __init__(self, training: Training) -> None:
        self._banks = training.banks
        self._version, self._before = self._look()
        self.ratios: dict[int, Mapping[str, float]] = {}
        """Version → tensor → how far it has moved per update since the version looked at before."""

    def __call__(self, update: Update) -> None:
        """Compare the newest version, which is `update`'s or one that has come since, with the one before."""
        version, now = self._look()
        updates = version - self._version
        if updates:
            self.ratios[version] = {
                name: float(np.linalg.norm(now[name] - old) / max(float(np.linalg.norm(old)), 1e-12)) / updates
                for name, old in self._before.items()
            }
        self._version, self._before = version, now

    def _look(self) -> tuple[int, dict[str, np.ndarray]]:
        with self._banks.lease_newest() as lease:  # nobody writes to this bank until the block ends
            weights = lease.bank.weights
            return lease.version, {name: getattr(weights, name).copy() for name in Weights._fields}


def watched_training(config: ResolvedConfig, every: int = 10) -> UpdateRatios:
    """Train on random tokens with the stage in the graph; it is fed with one update in `every`."""
    training = Training(config, RandomTokens(config.model.geometry(), config.batch_sizes, config.seed))
    watch = UpdateRatios(training)
    graph = training.graph()
    graph.stage("ratios", watch, after=Node[Update]("publish", graph), when=lambda update: update.step % every == 0)
    with gemm_settings(config), graph.start(resources=training.resources) as run:
        for event in run:
            if isinstance(event, Update) and event.step % every == 0:
                print(f"update {event.step}: loss {event.loss:.4f}")
    stage = run.statistics()["ratios"]
    print(f"ratios: {stage.items_in} calls, {stage.busy:.3f} s of work beside {run.statistics().elapsed:.1f} s")
    return watch


def main(steps: int = 60, config: Config | None = None) -> UpdateRatios:
    """Run both."""
    digests, statistics = checksums()
    hashing = statistics["hash"]
    print(f"{len(digests)} blocks hashed by {hashing.workers} threads, {hashing.busy_share:.0%} busy: {digests[0]} ...")
    compile_kernels(print)
    config = config or load_config("nanogpt-cpu")
    config = msgspec.structs.replace(config, steps=steps)
    watch = watched_training(resolve(config, available_cores(), 65 if config.model.vocab_size is None else None))
    last = watch.ratios[max(watch.ratios)]
    matrices = {name: ratio for name, ratio in last.items() if not name.endswith("bias")}  # those begin at 0
    for name, ratio in sorted(matrices.items(), key=lambda pair: -pair[1])[:5]:
        print(f"{name:>20} moves by {ratio:.1e} of its size an update")
    return watch


if __name__ == "__main__":
    main()
