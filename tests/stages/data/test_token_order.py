"""Orders of a vocabulary: the Ulam spiral, ranks by counts, and the files of a text that is prepared in one."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from tests.stages.data.made_tokenizers import MADE, TEXT as MADE_TEXT
from threadloom.stages.config import Config, DataConfig, Gpt2Config, TokenizerKind, TokenOrder
from threadloom.stages.data import Dataset, StringText, TokenFile, prepare, prepared_order
from threadloom.stages.data.token_file import DataError
from threadloom.stages.data.token_order import ulam_point, ulam_ring, vocabulary_order
from threadloom.stages.inference.evaluated_text import decoded_size
from threadloom.stages.models import VocabularyOrder
from threadloom.stages.resolve import trajectory, trajectory_differences

TEXT = "a cat sat on a mat, and 12 more mats; " * 40 + "zzz\n"
ORDERS = [order for order in TokenOrder if order is not TokenOrder.ID]


def walked(count: int) -> list[tuple[int, int]]:
    """Return the points of the spiral by walking it: 1, 1, 2, 2, 3, 3, ... steps, with a left turn after each."""
    points, at, direction, length = [(0, 0)], (0, 0), (1, 0), 1
    while len(points) < count:
        for _ in range(2):
            for _ in range(length):
                at = (at[0] + direction[0], at[1] + direction[1])
                points.append(at)
            direction = (-direction[1], direction[0])
        length += 1
    return points[:count]


def test_the_spiral_is_the_walk() -> None:
    numbers = np.arange(16_000)
    x, y = ulam_point(numbers)
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == walked(16_000)
    np.testing.assert_array_equal(ulam_ring(numbers), np.maximum(np.abs(x), np.abs(y)))


@given(st.integers(0, 2**26))
def test_the_ring_is_exact_at_squares(k: int) -> None:
    edges = np.array([max((2 * k - 1) ** 2, 0) if k else 0, (2 * k + 1) ** 2 - 1])
    assert ulam_ring(edges).tolist() == [k, k]
    assert ulam_ring(edges + np.array([0, 1])).tolist() == [k, k + 1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_by_ring_the_spiral_is_the_order_of_frequency(counts: list[int]) -> None:
    by_frequency = vocabulary_order(TokenOrder.FREQUENCY, np.array(counts))
    assert by_frequency.ids.tolist() == sorted(range(len(counts)), key=lambda token: (-counts[token], token))
    np.testing.assert_array_equal(vocabulary_order(TokenOrder.ULAM, np.array(counts)).ids, by_frequency.ids)


def test_by_manhattan_distance_the_spiral_is_another_order() -> None:
    counts = np.arange(10_000)[::-1]
    found = vocabulary_order(TokenOrder.ULAM_MANHATTAN, counts).ids
    x, y = np.array(walked(10_000)).T
    assert found.tolist() == sorted(range(10_000), key=lambda rank: (abs(x[rank]) + abs(y[rank]), rank))
    assert found[:9].tolist() == [0, 1, 3, 5, 7, 2, 4, 6, 8], "corners of a ring come after its sides"
    moved = np.abs(found - np.arange(10_000))
    assert np.count_nonzero(moved) > 9_000 and moved.max() > 1_000
    ring = ulam_ring(found.astype(np.int64))
    assert np.any(np.diff(ring) < 0), "rings mix"


@given(st.permutations(range(9)), st.integers(9, 12))
def test_an_order_and_its_inverse(ids: list[int], vocabulary: int) -> None:
    order = VocabularyOrder(np.array(ids, np.int32)).extended(vocabulary)
    np.testing.assert_array_equal(order.ids[order.rows], np.arange(vocabulary))
    np.testing.assert_array_equal(order.rows[order.ids], np.arange(vocabulary))
    assert order.ids[9:].tolist() == list(range(9, vocabulary))


def test_no_order_has_an_id_twice() -> None:
    with pytest.raises(ValueError, match="each id from 0 to 2 once"):
        VocabularyOrder(np.array([0, 2, 2], np.int32))


def prepared(folder: Path, text: str = TEXT, **data: object) -> Dataset:
    model = Gpt2Config(vocab_size=300, context=8, layers=1, heads=1, channels=4)
    return prepare(DataConfig(**data), model, StringText(text), folder)  # type: ignore[arg-type]


def restored(data: Dataset, tokens: TokenFile) -> NDArray[np.int32]:
    """Return the ids of the tokenizer in a token file, read window by window."""
    file = TokenFile(tokens.ids, tokens.vocab_size, 1, tokens.path, data.order)
    ids, targets = np.empty((2, 1), np.int32)
    found = []
    for start in range(len(tokens) - 1):
        file.read(start, ids, targets)
        found.append(int(ids[0]))
    return np.append(found, targets).astype(np.int32)


@pytest.mark.parametrize("kind", [*TokenizerKind, "llama2"])
def test_with_every_tokenizer_the_text_is_the_same(tmp_path: Path, kind: TokenizerKind | str) -> None:
    settings: dict[str, object] = {"tokenizer": kind}
    if kind in (TokenizerKind.PRETRAINED, "llama2"):
        path = tmp_path / "tokenizer.json"
        path.write_text(MADE["qwen" if kind is TokenizerKind.PRETRAINED else "llama2"]())
        settings = {"tokenizer": TokenizerKind.PRETRAINED, "tokenizer_path": str(path)}
    plain = prepared(tmp_path / "plain", MADE_TEXT, **settings)
    data = prepared(tmp_path / "ordered", MADE_TEXT, **settings, token_order=TokenOrder.FREQUENCY)
    assert plain.order is None and data.order is not None
    counts = np.bincount(data.train.ids, minlength=data.tokenizer.vocab_size)
    assert np.all(np.diff(counts) <= 0), "row r has the r-th most frequent token"
    for split in ("train", "validation"):
        before, now = getattr(plain, split), getattr(data, split)
        np.testing.assert_array_equal(restored(data, now), before.ids)
        ordered = TokenFile(now.ids, now.vocab_size, 1, now.path, data.order)
        assert decoded_size(data.tokenizer, ordered) == decoded_size(plain.tokenizer, before)
    assert (tmp_path / "ordered" / "tokenizer.json").read_bytes() == (tmp_path / "plain/tokenizer.json").read_bytes()


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_recorded_and_used_again(tmp_path: Path, order: TokenOrder) -> None:
    first = prepared(tmp_path, token_order=order)
    again = prepared(tmp_path, token_order=order)
    found = prepared_order(tmp_path)
    assert (first.reused, again.reused) == (False, True)
    assert first.order is not None and again.order is not None and found is not None
    assert first.order.ids.tolist() == again.order.ids.tolist() == found.ids.tolist()
    assert first.manifest == again.manifest and first.manifest.token_order is order
    back = prepared(tmp_path)
    assert not back.reused and back.order is None and prepared_order(tmp_path) is None
    assert not (tmp_path / "token_order.npy").exists()


def test_a_damaged_order_is_noticed_and_prepared_again(tmp_path: Path) -> None:
    expected = prepared(tmp_path, token_order=TokenOrder.FREQUENCY)
    content = bytearray((tmp_path / "token_order.npy").read_bytes())
    content[-4] ^= 1
    (tmp_path / "token_order.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"token_order\.npy.*order of the vocabulary.*another content.*resume the run"):
        prepared_order(tmp_path)
    data = prepared(tmp_path, token_order=TokenOrder.FREQUENCY)
    assert not data.reused and data.manifest == expected.manifest
    (tmp_path / "token_order.npy").unlink()
    assert not prepared(tmp_path, token_order=TokenOrder.FREQUENCY).reused


def test_a_manifest_without_an_order_still_opens(tmp_path: Path) -> None:
    prepared(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    assert (content.pop("token_order"), content.pop("order_sha256")) == ("id", None)
    path.write_text(json.dumps(content))
    assert prepared(tmp_path).reused


def test_a_resumed_run_may_not_change_the_order() -> None:
    def with_order(order: TokenOrder) -> dict[str, object]:
        model = Gpt2Config(vocab_size=9, context=8, layers=1, heads=1, channels=4)
        return trajectory(Config(name="x", model=model, batch_size=1, steps=1, data=DataConfig(token_order=order)))

    plain = with_order(TokenOrder.ID)
    assert "data.token_order" not in plain, "as in runs that earlier versions saved"
    assert trajectory_differences(plain, with_order(TokenOrder.ULAM)) == {"data.token_order": (None, "ulam")}
