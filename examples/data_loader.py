"""A data loader: pictures decoded on processes, augmented on threads, and prefetched in batches for a training loop.

    python -m examples.data_loader [--threads]

    samples → read → decode → augment → collate → batches → training loop

The order of the samples and their augmentation depend on the seed alone: every stage is `ordered`, and random numbers
are keyed by epoch and sample. So the losses are the same with any number of workers, on processes or on threads.
`capacity` of the sink is the number of batches that are prefetched while the loop computes.
"""

import sys
import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from threadloom import Gather, Graph, RunStatistics, Sink, available_cores, on_processes

SIZE, CLASSES = 48, 3
BATCH = 16
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """A sample on its way: `packed` from the file to `decode`, `pixels` from there on."""

    epoch: int
    number: int
    label: int
    packed: bytes = b""
    pixels: Pixels | None = None


@dataclass(frozen=True)
class Batch:
    """The features and the labels of `BATCH` samples."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def stripes(label: int, number: int) -> Pixels:
    """Return a noisy picture of stripes: horizontal, vertical or diagonal, by its label."""
    generator = np.random.default_rng((label, number))
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    along = (y, x, x + y)[label]
    wave = np.sin(along * generator.uniform(0.5, 0.9) + generator.uniform(0, 2 * np.pi))
    pixels: Pixels = np.clip(128 + 60 * wave + generator.normal(0, 25, wave.shape), 0, 255).astype(np.uint8)
    return pixels


def encode(pixels: Pixels) -> bytes:
    """Compress a picture as PNG does: each row as the difference to the row above it."""
    return zlib.compress(np.diff(pixels, axis=0, prepend=np.zeros((1, SIZE), np.uint8)).tobytes())


def decode(sample: Sample) -> Sample:
    """Decompress a picture. It runs in a process, so it may also be Python code that holds the GIL."""
    rows = np.frombuffer(zlib.decompress(sample.packed), np.uint8).reshape(SIZE, SIZE)
    return replace(sample, packed=b"", pixels=np.cumsum(rows, axis=0, dtype=np.uint8))


def augment(sample: Sample) -> Sample:
    """Shift and flip a picture at random. Neither changes the direction of its stripes."""
    assert sample.pixels is not None
    generator = np.random.default_rng((sample.epoch, sample.number))
    shifted = np.roll(sample.pixels, generator.integers(SIZE, size=2), axis=(0, 1))
    return replace(sample, pixels=shifted[::-1, ::-1] if generator.random() < 0.5 else shifted)


def collate(samples: list[Sample]) -> Batch:
    """Return a batch of the mean steps of the pictures in four directions."""
    pixels = np.stack([sample.pixels for sample in samples if sample.pixels is not None]).astype(np.float32) / 255
    down, right = np.diff(pixels, axis=1)[:, :, 1:], np.diff(pixels, axis=2)[:, 1:]
    steps = [np.abs(each).mean(axis=(1, 2)) for each in (down, right, down + right, down - right)]
    return Batch(np.stack(steps, axis=1), np.array([sample.label for sample in samples]))


def loader(files: list[bytes], epochs: int, seed: int, *, workers: int, processes: bool) -> tuple[Graph, Sink[Batch]]:
    """Return the graph of the loader and its sink. File n has the label n mod CLASSES."""
    order = [np.random.default_rng((seed, epoch)).permutation(len(files)).tolist() for epoch in range(epochs)]
    samples = [Sample(epoch, n, n % CLASSES) for epoch, numbers in enumerate(order) for n in numbers]
    graph = Graph("loader")
    packed = graph.stage(
        "read", lambda sample: replace(sample, packed=files[sample.number]), after=graph.source("samples", samples)
    )
    unpack = on_processes(decode) if processes else decode
    decoded = graph.stage("decode", unpack, after=packed, workers=workers, capacity=2 * workers, ordered=True)
    augmented = graph.stage("augment", augment, after=decoded, workers=2, ordered=True)
    batches = graph.stage("collate", collate, after=augmented, gather=Gather(count=BATCH))
    return graph, graph.sink("batches", after=batches, capacity=2)


class SoftmaxRegression:
    """The model of the training loop: a linear classifier of standardised features."""

    def __init__(self, lr: float = 0.5) -> None:
        self.lr = lr
        self.weight = np.zeros((5, CLASSES), np.float32)

    def step(self, batch: Batch) -> tuple[float, float]:
        """Update the weights by one batch; return its loss and its accuracy before the update."""
        scaled = (batch.features - batch.features.mean(axis=0)) / (batch.features.std(axis=0) + 1e-6)
        inputs = np.concatenate([scaled, np.ones((len(scaled), 1), np.float32)], axis=1)
        scores = inputs @ self.weight
        scores -= scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        rows = np.arange(len(inputs))
        loss = -float(np.log(probabilities[rows, batch.labels]).mean())
        accuracy = float((scores.argmax(axis=1) == batch.labels).mean())
        probabilities[rows, batch.labels] -= 1
        self.weight -= self.lr * inputs.T @ probabilities / len(inputs)
        return loss, accuracy


def train_on(
    files: list[bytes], epochs: int, *, workers: int = 2, processes: bool = True, progress: bool = False
) -> tuple[list[tuple[float, float]], RunStatistics]:
    """Train for some epochs; return the loss and the accuracy of each batch, and the statistics of the loader."""
    graph, batches = loader(files, epochs, seed=0, workers=workers, processes=processes)
    model = SoftmaxRegression()
    with graph.start(progress=progress) as run:
        return [model.step(batch) for batch in run.items(batches)], run.statistics()


def main(pictures: int = 480, epochs: int = 4, processes: bool = True) -> list[tuple[float, float]]:
    """Create the pictures, train, and print the course of the training and the statistics of the stages."""
    files = [encode(stripes(n % CLASSES, n)) for n in range(pictures)]
    workers = max(2, available_cores())
    steps, statistics = train_on(files, epochs, workers=workers, processes=processes, progress=True)
    per_epoch = len(steps) // epochs
    for epoch in range(epochs):
        loss, accuracy = np.mean(steps[epoch * per_epoch : (epoch + 1) * per_epoch], axis=0)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {accuracy:.0%}")
    for stage in statistics.values():
        print(
            f"{stage.name:>8}: {stage.workers} worker(s), {stage.busy_share:4.0%} busy, {stage.waiting_share:4.0%} "
            f"waiting, {stage.blocked_share:4.0%} blocked, {stage.items_out} out"
        )
    where = "processes" if processes else "threads"
    waited = statistics["batches"].waiting
    print(f"{statistics.elapsed:.2f} s, decoded on {workers} {where}; the loop waited {waited:.2f} s for batches")
    return steps


if __name__ == "__main__":
    main(processes="--threads" not in sys.argv)
