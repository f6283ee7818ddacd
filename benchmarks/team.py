"""One micro-batch per update: teams of several threads beside one thread, in one process.

    python -m benchmarks.team [CONFIG] [--rounds N] [--members N] [--set key=value ...]

The sides alternate within each round; a figure is the median of the seconds of forward and backward, each with its
ratio to one thread, after the loss and every gradient of both sides have been found equal, bit by bit. The bound is the
ratio that the CPU time of all members allows, if each has a core: other programs, which hold up members, hardly change
it.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from threadloom.pipeline import blas_threads
from threadloom.stages.data import RandomTokens
from threadloom.stages.resolve import apply_overrides, gemm_settings, load_config, resolve
from threadloom.stages.step import plan_micro_batches
from threadloom.stages.training import Training


class Side:
    """A training whose updates have one micro-batch, divided among the members of a team."""

    def __init__(self, config: str, overrides: Sequence[str], members: int) -> None:
        open_config = apply_overrides(load_config(config), ("batch_size=1", "micro_batch=1", "lanes=1", *overrides))
        whole = apply_overrides(open_config, (f"threads.team={members}",))
        self.config = resolve(whole, cores=members, vocabulary=whole.model.vocab_size or 65)
        self.training = Training(
            self.config, RandomTokens(self.config.geometry(), self.config.batch_sizes, self.config.seed)
        )
        self.members = members
        self.forget()

    def forget(self) -> None:
        """Discard the figures of all rounds: seconds, and seconds of CPU time."""
        self.seconds: dict[str, list[float]] = {"forward": [], "backward": []}
        self.cpu_seconds: dict[str, list[float]] = {"forward": [], "backward": []}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name].append(time.perf_counter() - begin)
        self.cpu_seconds[name].append(time.process_time() - cpu)

    def run(self) -> tuple[float, bytes]:
        """Compute the gradient of batch 0; return its loss and the bits of all gradients."""
        training = self.training
        (item,) = plan_micro_batches(0, 1, 1)
        training.draw.acquire(item)
        training.embed.acquire(training.draw(item))
        training.embed(item)
        with self._timed("forward"):
            training.forward(item)
        with self._timed("backward"):
            gradient = training.backward(item)
        return gradient.loss, training.lanes.flat.tobytes()


def main() -> None:
    """Compare the bits, then alternate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="nanogpt-cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="change a setting")
    arguments = parser.parse_args()
    sides = [Side(arguments.config, arguments.overrides, members) for members in (1, arguments.members)]
    with gemm_settings(sides[0].config), blas_threads(1):
        found = [side.run() for side in sides]
        assert found[0] == found[1], "the bits of the team are not those of one thread"
        for side in sides:
            side.forget()
        for _ in range(arguments.rounds):
            for side in sides:
                side.run()
    for name in ("forward", "backward"):
        alone, team = (statistics.median(side.seconds[name]) for side in sides)
        ratios = sorted(a / b for a, b in zip(*(side.seconds[name] for side in sides), strict=True))
        cpu_alone, cpu_team = (statistics.median(side.cpu_seconds[name]) for side in sides)
        bound = arguments.members * cpu_alone / cpu_team
        print(
            f"{arguments.config} {name:8}  {1e3 * alone:8.1f} ms  {1e3 * team:8.1f} ms by {arguments.members}  "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), bound {bound:.2f}"
        )


if __name__ == "__main__":
    main()
