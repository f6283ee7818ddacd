"""Bands whose ranks follow a power of the frequency: parameters, order, and a run that has them."""

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.stages.support import story
from threadloom.stages.config import ConfigError
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.embedding import VocabularyFacts, bands_by_frequency
from threadloom.stages.inference.model import Model
from threadloom.stages.resolve import apply_overrides, validate
from threadloom.stages.run import train
from threadloom.stages.storage import RunMode


def parameters(bands: tuple[tuple[int, int], ...], channels: int) -> int:
    return sum(tokens * rank + (rank * channels if rank < channels else 0) for tokens, rank in bands)


@pytest.mark.parametrize("alpha", [-0.3, 0.3, 0.6, 2.0])
@pytest.mark.parametrize(
    ("vocabulary", "rank", "channels"), [(10_000, 64, 256), (50_257, 192, 768), (65, 32, 128), (3, 2, 9)]
)
def test_bands_have_the_parameters_of_one_rank_and_follow_the_frequency(
    vocabulary: int, rank: int, channels: int, alpha: float
) -> None:
    counts = np.floor(1e6 / np.arange(1, vocabulary + 1))
    bands = bands_by_frequency(counts, rank, channels, alpha)
    assert sum(tokens for tokens, _ in bands) == vocabulary
    whole = rank * (vocabulary + channels)
    assert parameters(bands, channels) <= whole
    ranks = [found for _, found in bands]
    assert ranks == sorted(ranks, reverse=alpha > 0)
    assert len(set(ranks)) == len(ranks) <= 4
    assert 1 <= min(ranks) < channels
    assert max(ranks) <= channels
    if vocabulary > 1000:
        assert parameters(bands, channels) > 0.75 * whole  # ranks are multiples of 8
        means = [part.mean() for part in np.split(counts, np.cumsum([tokens for tokens, _ in bands])[:-1])]
        free = [i for i, found in enumerate(ranks) if 8 < found < channels]
        for i, j in pairwise(free):
            expected = (means[i] / means[j]) ** alpha
            assert (ranks[i] - 8) / (ranks[j] + 8) < expected < (ranks[i] + 8) / (ranks[j] - 8)


def test_frequencies_are_counted_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadloom.stages.embedding.vocabulary.BLOCK", 3)
    ids = np.array([0, 1, 0, 1, 2, 2, 9, 0, 1, 0], np.uint16)
    found = VocabularyFacts(3, tokens=TokenFile(ids, 10, 1, Path("train"))).frequencies()
    np.testing.assert_array_equal(found, [3, 3, 2])  # without the last token; the 9 is outside of the vocabulary


def test_a_run_has_the_bands_and_resumes_with_them(tmp_path: Path) -> None:
    settings = ("embedding.rank=5", "embedding.alpha=0.5", "data.token_order=frequency", "steps=2", "pictures=false")
    config = story(tmp_path, *settings)
    run = train(config, tmp_path / "run").run
    saved = msgspec.json.decode(run.config.read_bytes())["embedding"]
    ranks = [rank for _, rank in saved["bands"]]
    assert saved["rank"] == saved["alpha"] == 0
    assert len(ranks) > 1
    assert ranks == sorted(ranks, reverse=True)
    longer = ("steps=3", "schedule.decay_steps=2")
    train(story(tmp_path, *settings, *longer), tmp_path / "run", RunMode.RESUME)
    assert Model.open(run.path).geometry.bands == ()


def test_a_power_of_the_frequency_needs_its_order(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.token_order"):
        validate(apply_overrides(story(tmp_path), ("embedding.rank=5", "embedding.alpha=0.5")))
