"""The examples that load data: the same results with any number of workers, on processes and on threads."""

import numpy as np
import pytest

from examples import data_loader

pytestmark = pytest.mark.timeout(120)


def pictures(count: int) -> list[bytes]:
    return [data_loader.encode(data_loader.stripes(n % data_loader.CLASSES, n)) for n in range(count)]


def test_decoding_inverts_encoding() -> None:
    for label in range(data_loader.CLASSES):
        picture = data_loader.stripes(label, 7)
        sample = data_loader.decode(data_loader.Sample(0, 7, label, data_loader.encode(picture)))
        np.testing.assert_array_equal(sample.pixels, picture)


def test_the_training_learns_and_does_not_depend_on_the_workers(capsys: pytest.CaptureFixture[str]) -> None:
    files = pictures(96)
    steps, statistics = data_loader.train(files, 3, workers=1, processes=False)
    assert len(steps) == 3 * 96 // data_loader.BATCH
    # A class chosen at random is right in a third of the cases; the directions of the stripes are clear.
    assert np.mean([accuracy for _, accuracy in steps[-6:]]) > 0.9
    assert statistics["decode"].items_out == 3 * 96
    assert data_loader.train(files, 3, workers=3, processes=False)[0] == steps


def test_the_same_on_processes_with_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    steps = data_loader.main(pictures=32, epochs=1)
    assert steps == data_loader.train(pictures(32), 1, processes=False)[0]
    captured = capsys.readouterr()
    assert "epoch 0: loss " in captured.out
    assert "worker(s)" in captured.out
    assert "loader: 2 of 2, " in captured.err
