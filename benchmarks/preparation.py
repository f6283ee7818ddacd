"""The preparation of a text beside the batch encoding of the `tokenizers` library, which it stands on.

    python -m benchmarks.preparation                     # 8 MB of text, a BPE tokenizer of 32,000 tokens
    python -m benchmarks.preparation --megabytes 1000 --rounds 1 --json FILE

The library encodes lists of pieces of the text that are in memory, on all cores, and keeps nothing: the time is that
of `encode_batch` alone. threadloom reads the text from a file, encodes it, and writes token files with checksums. Each
runs in a process of its own, alternately; both use the same tokenizer, and the ids are compared before any time is
taken. The text is the source of the standard library, again and again, each time with other numbers.

Goals: 0.9 of the library's rate, peak memory under 500 MB for a text of any length.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from threadloom.stages.config import Config, DataConfig, Gpt2Config, TokenizerKind
from threadloom.stages.console import peak_resident_bytes
from threadloom.stages.data import create_tokenizer, prepare, read_text
from threadloom.stages.resolve import apply_overrides

RATE_AT_LEAST, MEMORY_AT_MOST = 0.9, 500e6
VOCABULARY = 32_000
PIECE = 1 << 14
"""Characters of the pieces that the library encodes."""
PIECES = 64
"""Pieces of a call of the library."""


class Measured(msgspec.Struct):
    """The result of one process."""

    seconds: float
    reading: float
    """Seconds in which the text was read before, of threadloom to know its checksum."""
    characters: int
    tokens: int
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Characters per second."""
        return self.characters / self.seconds


def write_text(path: Path, size: int) -> None:
    """Write a text of at least `size` characters, without repetitions of long parts."""
    source, written, number = read_text(()).read(), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            for line in source.splitlines(keepends=True):
                number += 1
                written += file.write(f"{number} {line}" if number % 8 == 0 else line)
                if written >= size:
                    break


def pieces(path: Path) -> Iterator[list[str]]:
    """Yield lists of pieces of a text, each of whole lines."""
    batch, piece, length = list[str](), list[str](), 0
    with path.open(encoding="utf-8", newline="") as file:
        for line in file:
            piece.append(line)
            length += len(line)
            if length >= PIECE:
                batch.append("".join(piece))
                piece, length = [], 0
            if len(batch) == PIECES:
                yield batch
                batch = []
    yield [*batch, "".join(piece)]


def library(text: Path, tokenizer: Path) -> Measured:
    """Encode a text with `encode_batch`; reading the text is not counted."""
    import tokenizers

    found = tokenizers.Tokenizer.from_file(str(tokenizer))
    seconds, characters, tokens, begin = 0.0, 0, 0, time.perf_counter()
    for batch in pieces(text):
        start = time.perf_counter()
        encodings = found.encode_batch(batch, add_special_tokens=False)
        seconds += time.perf_counter() - start
        tokens += sum(len(encoding) for encoding in encodings)
        characters += sum(map(len, batch))
    return Measured(seconds, time.perf_counter() - begin - seconds, characters, tokens, peak_resident_bytes())


def threadloom(text: Path, tokenizer: Path) -> Measured:
    """Prepare a text from file to files."""
    config = apply_overrides(
        Config(name="preparation", model=Gpt2Config(context=8, layers=1, heads=1, channels=4), batch_size=4, steps=1),
        ["data.tokenizer=pretrained", f"data.tokenizer_path={tokenizer}", "data.train_fraction=0.99"],
    )
    begin = time.perf_counter()
    found = read_text([text])
    read = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=text.parent) as folder:
        data = prepare(config.data, config.model, found, Path(folder))
        seconds = time.perf_counter() - read
        return Measured(
            seconds, read - begin, found.characters, len(data.train) + len(data.validation), peak_resident_bytes()
        )


CONTESTANTS = {"library": library, "threadloom": threadloom}


def measured(name: str, text: Path, tokenizer: Path) -> Measured:
    """Return the result of a contestant in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.preparation", "--only", name, str(text), str(tokenizer)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return msgspec.json.decode(output, type=Measured)


def require_equal_ids(text: Path, tokenizer: Path) -> None:
    """Raise unless a part of the text has the same ids in both."""
    import tokenizers

    from threadloom.stages.data import load_tokenizer

    sample = text.read_text(encoding="utf-8")[:500_000]
    expected = tokenizers.Tokenizer.from_file(str(tokenizer)).encode(sample, add_special_tokens=False).ids
    if not np.array_equal(load_tokenizer(tokenizer).encode(sample), expected):
        raise SystemExit("the ids differ from the library's: no time is worth anything")


def run(megabytes: float, rounds: int) -> dict[str, Any]:
    """Measure, and return the results of all rounds with their medians."""
    with tempfile.TemporaryDirectory() as folder:
        text, tokenizer = Path(folder, "text.txt"), Path(folder, "tokenizer.json")
        write_text(text, int(megabytes * 1e6))
        sample = read_text(()).first(min(8_000_000, int(megabytes * 1e6)))
        create_tokenizer(DataConfig(tokenizer=TokenizerKind.BPE), VOCABULARY, sample).save(tokenizer)
        require_equal_ids(text, tokenizer)
        found = {name: list[Measured]() for name in CONTESTANTS}
        for _ in range(rounds):
            for name, results in found.items():
                results.append(measured(name, text, tokenizer))
    rates = {name: statistics.median(result.rate for result in results) for name, results in found.items()}
    peak = max(result.peak_bytes for result in found["threadloom"])
    return {
        "rounds": {name: msgspec.to_builtins(results) for name, results in found.items()},
        "characters_per_second": rates,
        "ratio": rates["threadloom"] / rates["library"],
        "peak_bytes": peak,
        "reached": rates["threadloom"] >= RATE_AT_LEAST * rates["library"] and peak <= MEMORY_AT_MOST,
    }


def main() -> None:
    """Print the rates, their ratio and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=8.0, help="length of the text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for all results")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        name, text, tokenizer = arguments.only
        sys.stdout.buffer.write(msgspec.json.encode(CONTESTANTS[name](Path(text), Path(tokenizer))))
        return
    found = run(arguments.megabytes, arguments.rounds)
    for name, rate in found["characters_per_second"].items():
        print(f"{name:>10}: {rate / 1e6:6.2f} M characters/s")
    print(f"{'ratio':>10}: {found['ratio']:.2f} (goal: {RATE_AT_LEAST})")
    print(f"{'peak':>10}: {found['peak_bytes'] / 1e6:.0f} MB (goal: {MEMORY_AT_MOST / 1e6:.0f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
