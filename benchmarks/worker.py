"""One side of a comparison, controlled by lines of JSON (`benchmarks.protocol`)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from benchmarks.protocol import Side, TrainingSizes, UpdateFigures
from threadloom.stages.console import resident_bytes, serve


class Trainer(Protocol):
    """The interface that both sides implement."""

    def run(self, updates: int) -> UpdateFigures:
        """Make `updates` updates and return their figures."""

    def close(self) -> None:
        """End the threads of the trainer."""


@dataclass(frozen=True)
class SideServer:
    """A trainer and the memory that its libraries took before it built anything, in bytes."""

    trainer: Trainer
    libraries: int

    def run(self, updates: int) -> UpdateFigures:
        """Make `updates` updates and return their figures."""
        return self.trainer.run(updates)

    def memory(self) -> dict[str, int]:
        """Return the memory of the libraries."""
        return {"libraries": self.libraries}

    def close(self) -> None:
        """End the threads of the trainer."""
        self.trainer.close()


def build_side(task: Any) -> SideServer:
    """Return the server of a side, from the task of `protocol.SideWorker`."""
    if task["cpus"]:
        os.sched_setaffinity(0, task["cpus"])  # before any library starts threads, which inherit it
    folder = Path(task["folder"]) if task["folder"] else None
    side, sizes, precision = Side[task["side"]], msgspec.convert(task["sizes"], TrainingSizes), task["precision"]
    if side is Side.OURS:
        from benchmarks import ours

        libraries = resident_bytes()
        return SideServer(ours.Threadloom(task["config"], task["delay"], sizes.threads, folder, precision), libraries)
    if side is Side.JAX:
        from benchmarks import peer_jax

        libraries = resident_bytes()
        return SideServer(peer_jax.Jax(sizes, precision, folder), libraries)
    if side is Side.LLM_C:
        from benchmarks import peer_llm_c

        libraries = resident_bytes()
        return SideServer(peer_llm_c.LlmC(sizes, folder), libraries)
    from benchmarks import peer

    libraries = resident_bytes()
    return SideServer(peer.PyTorch(sizes, side, precision, folder), libraries)


if __name__ == "__main__":
    serve(build_side)
