"""Image processing over a directory, with the pure-Python part on processes: dithering, which cannot be vectorised.

    python -m examples.image_directory [FOLDER] [--threads]

    paths → read → dither → write → done

Error diffusion visits pixels one by one, because each depends on the error of its predecessor. It is Python code that
holds the GIL, so threads do not help, and each worker of `dither` has a process. The pixels stay in shared memory from
`read` to `write`; only the name of a slot is sent to a process and back. With `--threads` the same graph runs on
threads, for comparison. Without a folder, pictures are generated in a temporary one.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom import Graph, RunStatistics, SharedPool, available_cores, on_processes

Pixels = NDArray[np.uint8]


@dataclass
class Image:
    """A greyscale picture and its file."""

    path: Path
    pixels: Pixels
    ink: float = 0.0
    """Share of black pixels after dithering."""


def dither(image: Image) -> Image:
    """Convert grey to black and white in place by error diffusion (Floyd and Steinberg, 1976)."""
    pixels = image.pixels
    height, width = pixels.shape
    below = [float(value) for value in pixels[0]]
    black = 0
    for y in range(height):
        row = below
        below = [float(value) for value in pixels[y + 1]] if y + 1 < height else [0.0] * width
        for x in range(width):
            old = row[x]
            new = 255 if old > 127 else 0
            black += new == 0
            error = (old - new) / 16
            if x + 1 < width:
                row[x + 1] += 7 * error
                below[x + 1] += error
            if x:
                below[x - 1] += 3 * error
            below[x] += 5 * error
            pixels[y, x] = new
    image.ink = black / pixels.size
    return image


def read_header(path: Path) -> tuple[int, int, int]:
    """Return width, height and offset of the pixels of a binary PGM file without comments. Raises ValueError."""
    with path.open("rb") as file:
        fields = file.read(64).split(None, 4)[:4]
    if len(fields) < 4 or fields[0] != b"P5" or fields[3] != b"255" or not (fields[1] + fields[2]).isdigit():
        raise ValueError(f"{path} is not an 8-bit binary PGM file (P5): its first fields are {fields}")
    width, height = int(fields[1]), int(fields[2])
    begin = path.stat().st_size - width * height
    if begin < 0 or not width or not height:
        raise ValueError(f"{path} should have {width} × {height} pixels, but has {path.stat().st_size} bytes")
    return width, height, begin


def write_pgm(path: Path, pixels: Pixels) -> None:
    """Write a binary PGM file."""
    with path.open("wb") as file:
        file.write(f"P5 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode())
        file.write(np.ascontiguousarray(pixels).data)


def make_pictures(folder: Path, count: int = 24, size: int = 512) -> None:
    """Write `count` different pictures of smooth waves."""
    y, x = np.mgrid[0:size, 0:size] / size
    for number in range(count):
        angle = np.pi * number / count
        wave = np.sin(12 * (x * np.cos(angle) + y * np.sin(angle)) + 3 * np.hypot(x - 0.5, y - 0.5) * number)
        write_pgm(folder / f"wave-{number:02}.pgm", (127.5 + 127.5 * wave * (1 - y)).astype(np.uint8))


def dither_folder(
    folder: Path, out: Path, workers: int = 2, processes: bool = True
) -> tuple[dict[str, float], RunStatistics, str]:
    """Dither all PGM files of a folder into another. Return name → share of ink, statistics, and the memory used."""
    paths = sorted(folder.glob("*.pgm"))
    if not paths:
        raise FileNotFoundError(f"no *.pgm file in {folder}")
    largest = max(width * height for width, height, _ in map(read_header, paths))
    # As many as can be in flight: two per channel, one per worker. With fewer, `read` would wait at times.
    pool = SharedPool(2 + workers + 2 + 1 + 1, largest, name="pictures")

    def read(path: Path) -> Image:
        width, height, begin = read_header(path)
        pixels = pool.empty((height, width), np.uint8)
        with path.open("rb") as file:
            file.seek(begin)
            if file.readinto(pixels.data) != pixels.nbytes:
                raise ValueError(f"{path} changed while it was read")
        return Image(path, pixels)

    def write(image: Image) -> tuple[str, float]:
        write_pgm(out / image.path.name, image.pixels)
        return image.path.name, image.ink

    work = on_processes(dither) if processes else dither
    graph = Graph("images")
    images = graph.stage("read", read, after=graph.source("paths", paths))
    dithered = graph.stage("dither", work, after=images, workers=workers)
    graph.sink("done", after=graph.stage("write", write, after=dithered))
    with pool, graph.start(resources=[pool]) as run:
        return dict(run), run.statistics(), f"{pool}; at most {pool.statistics().most_lent} slots in use"


def main(folder: Path | None = None, processes: bool = True, workers: int | None = None) -> dict[str, float]:
    """Dither the pictures of a folder, and print the statistics of the stages."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as temporary:
        source = folder or Path(temporary)
        if folder is None:
            make_pictures(source)
        out = Path(temporary) / "dithered" if folder is None else source / "dithered"
        out.mkdir(exist_ok=True)
        begin = time.perf_counter()
        ink, statistics, memory = dither_folder(source, out, workers or max(2, available_cores()), processes)
        seconds = time.perf_counter() - begin
    where = "processes" if processes else "threads"
    print(f"{len(ink)} pictures, {sum(ink.values()) / len(ink):.1%} ink on average, dithered on {where}")
    print(memory)
    for stage in statistics.values():
        print(
            f"{stage.name:>6}: {stage.workers} worker(s), {stage.busy_share:4.0%} busy, {stage.waiting_share:4.0%} "
            f"waiting, {stage.blocked_share:4.0%} blocked, {stage.items_out} out, p50 {stage.tasks.p50 * 1e3:.1f} ms"
        )
    print(f"{seconds:.2f} s, including the start and the end of processes")
    return ink


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:] if argument != "--threads"]
    main(folders[0] if folders else None, processes="--threads" not in sys.argv)
