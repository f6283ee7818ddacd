"""One side of a comparison, told what to do by lines of JSON (`benchmarks.protocol`)."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from benchmarks.protocol import FLOAT32, Side, Sizes, Steps
from threadloom.stages.console import answers_only, resident, serve


class Trainer(Protocol):
    """What both sides can do."""

    def run(self, updates: int) -> Steps:
        """Make updates and say what they took and gave."""

    def close(self) -> None:
        """End what is running."""


def build(
    side: Side, config: str, sizes: Sizes, delay: int, folder: Path | None, precision: str
) -> tuple[Trainer, int]:
    """Return the trainer of a side, and the memory that its libraries took before it built anything."""
    if side is Side.OURS:
        from benchmarks import ours

        libraries = resident("VmRSS")
        return ours.Threadloom(config, delay, sizes.threads, folder, precision), libraries
    from benchmarks import peer

    libraries = resident("VmRSS")
    return peer.PyTorch(sizes, side is Side.COMPILED, folder, low=precision != FLOAT32), libraries


def main() -> None:
    """Serve until the input ends."""
    answers = answers_only()
    task = json.loads(sys.stdin.readline())
    if task["cpus"]:
        os.sched_setaffinity(0, task["cpus"])  # before any library starts threads: they inherit it
    folder = Path(task["folder"]) if task["folder"] else None
    side, sizes = Side[task["side"]], Sizes(**task["sizes"])
    trainer, libraries = build(side, task["config"], sizes, task["delay"], folder, task["precision"])
    try:
        serve(answers, lambda updates: asdict(trainer.run(updates)), lambda: {"libraries": libraries})
    finally:
        trainer.close()


if __name__ == "__main__":
    main()
