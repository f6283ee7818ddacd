"""One side of a comparison, told what to do by lines of JSON (`benchmarks.protocol`)."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from benchmarks.protocol import FLOAT32, Side, Sizes, Steps


class Trainer(Protocol):
    """What both sides can do."""

    def run(self, updates: int) -> Steps:
        """Make updates and say what they took and gave."""

    def close(self) -> None:
        """End what is running."""


def memory(field: str) -> int:
    """Return a size of this process in bytes: VmRSS now, VmHWM at most so far. Elsewhere than on Linux, the peak."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def build(
    side: Side, config: str, sizes: Sizes, delay: int, folder: Path | None, precision: str
) -> tuple[Trainer, int]:
    """Return the trainer of a side, and the memory that its libraries took before it built anything."""
    if side is Side.OURS:
        from benchmarks import ours

        libraries = memory("VmRSS")
        return ours.Threadloom(config, delay, sizes.threads, folder, precision), libraries
    from benchmarks import peer

    libraries = memory("VmRSS")
    return peer.PyTorch(sizes, side is Side.COMPILED, folder, low=precision != FLOAT32), libraries


def main() -> None:
    """Serve until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may get between the answers
    task = json.loads(sys.stdin.readline())
    if task["cpus"]:
        os.sched_setaffinity(0, task["cpus"])  # before any library starts threads: they inherit it
    folder = Path(task["folder"]) if task["folder"] else None
    side, sizes = Side[task["side"]], Sizes(**task["sizes"])
    trainer, libraries = build(side, task["config"], sizes, task["delay"], folder, task["precision"])
    try:
        for line in sys.stdin:
            question = json.loads(line)
            if "run" in question:
                answer = asdict(trainer.run(question["run"]))
            else:
                answer = {"peak": memory("VmHWM"), "libraries": libraries}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        trainer.close()


if __name__ == "__main__":
    main()
