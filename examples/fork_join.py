"""A graph that forks, joins and routes: the loudness and the pitch of signals.

    python -m examples.fork_join [SIGNALS]

                     ┌→ loudness ─┐               ┌ bass   → bass ───┐
    numbers → record ┤            ├→ describe ─ range               ├→ notes
                     └→ pitch ────┘               └ treble → treble ─┘

Two stages after one are a fork: both receive every signal. `describe` is a join: it takes one result of each, matched
by the number of the signal. `range` is a route: it sends each note to one of two stages. Two stages before one are a
merge. NumPy's Fourier transform releases the GIL, so `pitch` has two threads.
"""

import sys
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from threadloom import Graph, RunOptions, RunStatistics

RATE = 48_000
"""Samples per second; a signal lasts one second."""
MIDDLE_C = 261.6
"""Hz; lower notes are bass."""


@dataclass(frozen=True)
class Signal:
    """One second of sound."""

    number: int
    samples: np.ndarray


@dataclass(frozen=True)
class Feature:
    """One measured value of a signal."""

    number: int
    value: float


@dataclass(frozen=True)
class Note:
    """The pitch and the loudness of a signal."""

    number: int
    pitch: float
    loudness: float


def record(number: int) -> Signal:
    """Return a tone with noise; the number seeds its pitch and amplitude."""
    random = np.random.default_rng(number)
    pitch, amplitude = random.integers(60, 1000), random.uniform(0.5, 2.0)
    time = np.arange(RATE) / RATE
    return Signal(number, amplitude * np.sin(2 * np.pi * pitch * time) + random.normal(scale=0.2, size=RATE))


def loudness(signal: Signal) -> Feature:
    """Return the root mean square of a signal."""
    return Feature(signal.number, float(np.sqrt(np.mean(signal.samples**2))))


def pitch(signal: Signal) -> Feature:
    """Return the frequency of the largest peak of the spectrum, in Hz."""
    return Feature(signal.number, float(np.abs(np.fft.rfft(signal.samples)).argmax()))


def describe(pair: tuple[Feature, Feature]) -> Note:
    """Combine the two features of one signal."""
    strength, height = pair
    return Note(height.number, height.value, strength.value)


def octave_up(note: Note) -> Note:
    """Return a bass note one octave higher."""
    return Note(note.number, 2 * note.pitch, note.loudness)


def softer(note: Note) -> Note:
    """Return a treble note at half its loudness."""
    return Note(note.number, note.pitch, note.loudness / 2)


def sound_graph(signals: int = 200) -> Graph:
    """Declare the graph drawn above."""
    graph = Graph("fork and join")
    # Two threads overtake each other, so the order of signals varies: the join matches them by number.
    recorded = graph.stage("record", record, after=graph.source("numbers", range(signals)), workers=2)
    loud = graph.stage("loudness", loudness, after=recorded)
    high = graph.stage("pitch", pitch, after=recorded)
    notes = graph.join("describe", describe, after=(loud, high), keys=(by_number, by_number), capacity=4)
    ways = graph.route("range", register, after=notes, to=("bass", "treble"))
    bass = graph.stage("bass", octave_up, after=ways["bass"])
    treble = graph.stage("treble", softer, after=ways["treble"])
    graph.sink("notes", after=[bass, treble])
    return graph


def by_number(feature: Feature) -> int:
    """Return the key by which the join matches features."""
    return feature.number


def register(note: Note) -> str:
    """Return the route of a note."""
    return "bass" if note.pitch < MIDDLE_C else "treble"


def listen(signals: int = 200, **options: Unpack[RunOptions]) -> tuple[list[Note], RunStatistics]:
    """Run the graph to its end."""
    with sound_graph(signals).start(**options) as run:
        return list(run), run.statistics()


def main(signals: int = 200) -> list[Note]:
    """Run the graph, and print some notes and the statistics of the stages."""
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
