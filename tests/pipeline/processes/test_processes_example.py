"""The example of process stages and their benchmark, at small sizes."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.process_hop import Content, hops
from examples import image_directory
from examples.image_directory import Image, dither, dither_folder, make_pictures, read_header, write_pgm
from threadloom.pipeline.core.shared import SharedPool

pytestmark = pytest.mark.timeout(60)


def test_processes_and_threads_dither_pictures_identically(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(tmp_path, count=4, size=24)
    results = []
    for processes in (True, False):
        out = tmp_path / f"out-{processes}"
        out.mkdir()
        ink, statistics, memory = dither_folder(tmp_path, out, workers=2, processes=processes)
        assert statistics["dither"].items_out == 4
        assert "8 slots × 576 bytes" in memory
        results.append((ink, [path.read_bytes() for path in sorted(out.iterdir())]))
    assert results[0] == results[1]
    for name, share in results[0][0].items():
        width, height, begin = read_header(tmp_path / "out-True" / name)
        pixels = np.frombuffer((tmp_path / "out-True" / name).read_bytes(), np.uint8, offset=begin)
        assert set(np.unique(pixels)) == {0, 255}
        assert share == pytest.approx((pixels == 0).sum() / (width * height))
        before = np.frombuffer((tmp_path / name).read_bytes(), np.uint8, offset=begin)
        assert abs(pixels.mean() - before.mean()) <= lost_error(width, height), "the mean grey level is kept"
    assert image_directory.main(tmp_path, processes=False) == results[0][0]
    assert "4 pictures" in capsys.readouterr().out


def test_the_error_of_a_pixel_is_distributed_to_its_neighbours() -> None:
    image = dither(Image(Path("half"), np.full((16, 16), 128, np.uint8)))
    assert abs(255.0 * (1.0 - image.ink) - 128.0) <= lost_error(16, 16)


def lost_error(width: int, height: int) -> float:
    """Return the largest change of the mean grey level by errors that are distributed beyond the edges.

    The error of a pixel is at most 128: those that it receives have weights that add up to 1. Lost are 8 sixteenths of
    those at the right edge, 3 at the left one, and 9 at the bottom.
    """
    return 128.0 / 16.0 * (11.0 * height + 9.0 * width) / (width * height)


def test_files_that_are_not_pictures_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \*.pgm file"):
        dither_folder(tmp_path, tmp_path)
    write_pgm(tmp_path / "short.pgm", np.zeros((4, 4), np.uint8))
    data = (tmp_path / "short.pgm").read_bytes()
    (tmp_path / "short.pgm").write_bytes(data.replace(b"4 4", b"400 400"))
    with pytest.raises(ValueError, match="should have 400 × 400 pixels"):
        read_header(tmp_path / "short.pgm")
    (tmp_path / "text.pgm").write_text("hello")
    with pytest.raises(ValueError, match="is not an 8-bit binary PGM"):
        read_header(tmp_path / "text.pgm")


@pytest.mark.filterwarnings("ignore:.* pickles .* for one item")
def test_the_benchmark_measures_every_kind_of_item() -> None:
    with SharedPool(2, 1 << 20) as pool:
        seen = hops(pool, megabytes=1, rounds=3, pickled_rounds=2)
    assert {content: len(times) for content, times in seen.items()} == {
        Content.EMPTY: 3,
        Content.SHARED: 3,
        Content.PICKLED: 2,
    }
    assert all(time > 0 for times in seen.values() for time in times)
