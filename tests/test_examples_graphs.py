"""The examples of graphs run and return the expected results."""

import zlib
from pathlib import Path

import pytest

from examples import fork_join, three_stages
from threadloom.pipeline import Trace
from threadloom.pipeline.testing import Subject, hammer


def test_three_stages_keep_the_order_and_return_the_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = {f"{number:02}.py": bytes(range(number)) * number for number in range(20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    weights = three_stages.main(tmp_path)
    assert [each.path.name for each in weights] == sorted(contents)
    for each in weights:
        assert each.size == len(contents[each.path.name])
        assert each.compressed == len(zlib.compress(contents[each.path.name], 9))
    shown = capsys.readouterr().out
    assert "20 files: " in shown
    assert " compress: 2 threads," in shown


@pytest.mark.parametrize("workers", [1, 3])
def test_three_stages_with_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    (tmp_path / "one.py").write_bytes(b"1" * 100)
    trace = Trace()
    (weight,), statistics = three_stages.weigh_all(tmp_path.glob("*.py"), workers, trace=trace)
    assert (weight.size, statistics["compress"].workers) == (100, workers)
    assert {event.stage for event in trace.events()} == {"paths", "read", "compress", "weigh"}


def test_fork_and_join_describe_every_signal_once(capsys: pytest.CaptureFixture[str]) -> None:
    notes = fork_join.main(24)
    assert sorted(note.number for note in notes) == list(range(24))
    for note in notes:
        signal = fork_join.record(note.number)
        pitch, loudness = fork_join.pitch(signal).value, fork_join.loudness(signal).value
        if pitch < fork_join.MIDDLE_C:
            assert (note.pitch, note.loudness) == (2 * pitch, loudness)
        else:
            assert (note.pitch, note.loudness) == (pitch, loudness / 2)
    assert "24 notes in" in capsys.readouterr().out


def test_fork_and_join_under_faults() -> None:
    hammer(lambda: Subject(fork_join.sound_graph(12)), range(10))
