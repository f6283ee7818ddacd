"""A graph that forks, joins and routes: the loudness and the pitch of signals.

    python -m examples.fork_join [SIGNALS]

                     ┌→ loudness ─┐               ┌ bass   → bass ───┐
    numbers → record ┤            ├→ describe ─ range               ├→ notes
                     └→ pitch ────┘               └ treble → treble ─┘

Two stages after one are a fork: both get every signal. `describe` is a join: it takes one result of each, which belong
together because they carry the same number. `range` is a route: it sends each note one of two ways. Two stages before
one are a merge. NumPy's Fourier transform holds no GIL, so `pitch` has two threads.
"""

import sys
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from threadloom.pipeline import Graph, RunOptions, RunStatistics

RATE = 48_000
"""Samples a second; a signal is one second long."""
MIDDLE_C = 261.6
"""Hz. Below is bass."""


@dataclass(frozen=True)
class Signal:
    """One second of sound."""

    number: int
    samples: np.ndarray


@dataclass(frozen=True)
class Measured:
    """One figure about a signal."""

    number: int
    value: float


@dataclass(frozen=True)
class Note:
    """What is known of a signal when both figures have met."""

    number: int
    pitch: float
    loudness: float


def record(number: int) -> Signal:
    """Make a tone in noise; the number says which."""
    random = np.random.default_rng(number)
    pitch, amplitude = random.integers(60, 1000), random.uniform(0.5, 2.0)
    time = np.arange(RATE) / RATE
    return Signal(number, amplitude * np.sin(2 * np.pi * pitch * time) + random.normal(scale=0.2, size=RATE))


def loudness(signal: Signal) -> Measured:
    """Root mean square."""
    return Measured(signal.number, float(np.sqrt(np.mean(signal.samples**2))))


def pitch(signal: Signal) -> Measured:
    """Frequency of the largest peak of the spectrum, in Hz."""
    return Measured(signal.number, float(np.abs(np.fft.rfft(signal.samples)).argmax()))


def describe(pair: tuple[Measured, Measured]) -> Note:
    """Put the two figures of one signal together."""
    strength, height = pair
    return Note(height.number, height.value, strength.value)


def octave_up(note: Note) -> Note:
    """What is done to a bass note."""
    return Note(note.number, 2 * note.pitch, note.loudness)


def softer(note: Note) -> Note:
    """What is done to a treble note."""
    return Note(note.number, note.pitch, note.loudness / 2)


def build(signals: int = 200) -> Graph:
    """Declare the graph drawn above."""
    graph = Graph("fork and join")
    # Two threads overtake each other, so signals come in any order: the join goes by their number.
    recorded = graph.stage("record", record, after=graph.source("numbers", range(signals)), workers=2)
    loud = graph.stage("loudness", loudness, after=recorded)
    high = graph.stage("pitch", pitch, after=recorded)
    notes = graph.join("describe", describe, after=(loud, high), keys=(by_number, by_number), capacity=4)
    ways = graph.route("range", register, after=notes, to=("bass", "treble"))
    bass = graph.stage("bass", octave_up, after=ways["bass"])
    treble = graph.stage("treble", softer, after=ways["treble"])
    graph.sink("notes", after=[bass, treble])
    return graph


def by_number(measured: Measured) -> int:
    """What tells which figures belong together."""
    return measured.number


def register(note: Note) -> str:
    """Say which way a note goes."""
    return "bass" if note.pitch < MIDDLE_C else "treble"


def listen(signals: int = 200, **options: Unpack[RunOptions]) -> tuple[list[Note], RunStatistics]:
    """Run it to its end."""
    with build(signals).start(**options) as run:
        return list(run), run.statistics()


def main(signals: int = 200) -> list[Note]:
    """Listen, and print some notes and what each stage did."""
    notes, statistics = listen(signals)
    for note in sorted(notes, key=lambda note: note.number)[:4]:
        print(f"signal {note.number}: {note.pitch:.0f} Hz, loudness {note.loudness:.2f}")
    for stage in statistics.values():
        print(
            f"{stage.name:>9}: {stage.workers} threads, {stage.items_out:4} out, {stage.busy_share:4.0%} busy, "
            f"{stage.waiting_share:4.0%} waiting, {stage.blocked_share:4.0%} blocked"
        )
    print(f"{len(notes)} notes in {statistics.elapsed:.2f} s")
    return notes


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
