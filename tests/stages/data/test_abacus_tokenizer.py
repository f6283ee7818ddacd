"""Digits at places of numbers: round trips, chunks that end within numbers, random offsets, files and refusals."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from tests.stages.support import build, result, run_sequence, run_threads, story
from threadloom.stages.config import (
    BatchSizes,
    Config,
    ConfigError,
    DataConfig,
    Digits,
    Gpt2Config,
    TokenizerKind,
    TokenOrder,
)
from threadloom.stages.data import (
    IGNORED_TARGET,
    AbacusTokenizer,
    Dataset,
    StringText,
    TokenBatches,
    digit_table,
    load_tokenizer,
    prepare,
)
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.tokenizer import TokenizerError
from threadloom.stages.inference.model import Model
from threadloom.stages.inference.text_evaluation import evaluate_text
from threadloom.stages.resolve import apply_overrides, resolve, trajectory
from threadloom.stages.resolve.validation import validate
from threadloom.stages.run import train
from threadloom.stages.storage import RunMode
from threadloom.stages.tools.export.exporting import export_opened

pytestmark = pytest.mark.timeout(120)

BASES = (BytesTokenizer(), CharacterTokenizer(" +-.0123456789=aé"))
texts = st.text("0123456789 +.aé", max_size=60)
places = st.integers(1, 7)


def expected_ids(base: BytesTokenizer | CharacterTokenizer, text: str, last: int) -> list[int]:
    """Return the ids by a regular expression: of each number, character by character."""
    ids: list[int] = []
    for number, other in re.findall(r"([0-9]+)|([^0-9]+)", text):
        ids += base.encode(other).tolist()
        for place, digit in enumerate(number, 1):
            placed = base.vocab_size + 10 * (place - 1) + int(digit)
            ids.append(placed if place <= last else int(base.encode(digit)[0]))
    return ids


@settings(deadline=None)
@given(st.sampled_from(BASES), texts, places, st.lists(st.integers(0, 60), max_size=4))
def test_numbers_survive_chunks_and_windows(
    base: BytesTokenizer | CharacterTokenizer, text: str, last: int, cuts: list[int]
) -> None:
    tokenizer = AbacusTokenizer(base, last)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.tolist() == expected_ids(base, text, last)
    assert tokenizer.decode(ids) == text
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[begin:end] for begin, end in pairwise(edges)]
    assert [int(token) for part in tokenizer.encode_chunks(chunks) for token in part] == ids.tolist()
    digits = np.flatnonzero([tokenizer.digit_table.digits[token] >= 0 for token in ids])
    for start in digits[:3]:  # a window that begins within a number
        assert tokenizer.decode(ids[start:]) == base.decode(base.encode(text)[start:])


@settings(deadline=None)
@given(texts, places, st.integers(0, 9))
def test_an_offset_moves_places_and_keeps_the_text(text: str, last: int, offset: int) -> None:
    tokenizer = AbacusTokenizer(BytesTokenizer(), last)
    table, ids = tokenizer.digit_table, tokenizer.encode(text)
    moved = table.moved(ids, offset)
    assert tokenizer.decode(moved) == text
    for before, after in zip(ids, moved, strict=True):
        place = table.places[before] + offset
        if table.places[before] == 0:
            assert after == before
        else:
            assert table.places[after] == (place if place <= last else 0)
            assert table.digits[after] == table.digits[before]


def test_the_table_has_digit_and_place_of_each_id() -> None:
    table = digit_table(AbacusTokenizer(CharacterTokenizer("059"), 2))
    assert table is not None and digit_table(BytesTokenizer()) is None
    assert table.digits.tolist() == [0, 5, 9, *range(10), *range(10)]
    assert table.places.tolist() == [0] * 3 + [1] * 10 + [2] * 10
    assert table.plain_ids.tolist() == [0, -1, -1, -1, -1, 1, -1, -1, -1, 2]


def test_digits_that_the_alphabet_lacks() -> None:
    tokenizer = AbacusTokenizer(CharacterTokenizer("05a"), 2)
    assert tokenizer.decode([2, 3 + 7, 3 + 10 + 5, 3 + 8]) == "a758"
    assert tokenizer.ids_with_text().tolist() == [0, 1, 2, 3, 8, 13, 18]
    with pytest.raises(TokenizerError, match="U\\+0037"):
        tokenizer.encode("7")
    with pytest.raises(TokenizerError, match="id from 0 to 22"):
        tokenizer.decode([23])


@pytest.mark.parametrize("base", BASES)
def test_it_is_saved_and_loaded(base: BytesTokenizer | CharacterTokenizer, tmp_path: Path) -> None:
    AbacusTokenizer(base, 3).save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, AbacusTokenizer) and (loaded.places, type(loaded.base)) == (3, type(base))
    assert loaded.encode("a 1234").tolist() == AbacusTokenizer(base, 3).encode("a 1234").tolist()
    (tmp_path / "tokenizer.json").write_text('{"format": "threadloom-tokenizer", "kind": "abacus", "places": 3}')
    with pytest.raises(TokenizerError, match="without its places or the tokenizer below it"):
        load_tokenizer(tmp_path)


TEXT = "".join(f"{a}+{a * a}={a + a * a};\n" for a in range(300))


def prepared(folder: Path, **data: object) -> Dataset:
    model = Gpt2Config(context=9, layers=1, heads=1, channels=4)
    return prepare(DataConfig(digits=Digits.ABACUS, **data), model, StringText(TEXT), folder)  # type: ignore[arg-type]


def drawn(source: TokenBatches, sizes: BatchSizes, batch: int) -> NDArray[np.int32]:
    """Return the windows of a batch (B, T + 1), each with its last target."""
    rows = []
    for micro in range(sizes.micro_batches):
        ids, targets = np.empty((2, sizes.micro_batch * 9), np.int32)
        source.fill(batch, micro, ids, targets)
        np.testing.assert_array_equal(ids.reshape(-1, 9)[:, 1:], targets.reshape(-1, 9)[:, :-1])
        rows.append(np.column_stack([ids.reshape(-1, 9), targets.reshape(-1, 9)[:, -1]]))
    return np.concatenate(rows)


@pytest.mark.parametrize("order", [TokenOrder.ID, TokenOrder.FREQUENCY])
def test_an_offset_leaves_targets_that_do_not_count(tmp_path: Path, order: TokenOrder) -> None:
    data = prepared(tmp_path, token_order=order, digit_places=12, digit_offset=6)
    assert data.offsets is not None
    whole, masked = data.train.ids[:50].astype(np.int32), data.train.ids[:50].astype(np.int32)
    masked[::3] = IGNORED_TARGET
    for ids in (whole, masked):
        data.offsets.add(4, ids)
    np.testing.assert_array_equal(masked, np.where(np.arange(50) % 3 == 0, IGNORED_TARGET, whole))


@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.BYTES])
@pytest.mark.parametrize("order", [TokenOrder.ID, TokenOrder.FREQUENCY])
def test_offsets_are_a_function_of_seed_batch_and_sequence(
    tmp_path: Path, kind: TokenizerKind, order: TokenOrder
) -> None:
    data = prepared(tmp_path, tokenizer=kind, token_order=order, digit_places=12, digit_offset=6)
    table = digit_table(data.tokenizer)
    assert table is not None and data.offsets is not None
    sizes, halves = BatchSizes(8, 4), BatchSizes(8, 1)
    source, plain = TokenBatches(data.train, sizes, 5, data.offsets), TokenBatches(data.train, sizes, 5)
    of_row = np.arange(data.tokenizer.vocab_size) if data.order is None else data.order.ids
    seen = set()
    for batch in (7, 0, 3):
        windows, before = drawn(source, sizes, batch), drawn(plain, sizes, batch)
        np.testing.assert_array_equal(windows, drawn(TokenBatches(data.train, halves, 5, data.offsets), halves, batch))
        for sequence, (now, then) in enumerate(zip(of_row[windows], of_row[before], strict=True)):
            offset = source.offset(batch, sequence)
            seen.add(offset)
            np.testing.assert_array_equal(now, table.moved(then, offset))
            assert data.tokenizer.decode(now) == data.tokenizer.decode(then)
    assert seen <= set(range(7)) and len(seen) > 4
    other = TokenBatches(data.train, sizes, 6, data.offsets)
    assert [other.offset(0, row) for row in range(8)] != [source.offset(0, row) for row in range(8)]


def test_a_directory_is_prepared_again_for_other_places(tmp_path: Path) -> None:
    first = prepared(tmp_path, digit_places=4)
    assert first.manifest.vocab_size == len(set(TEXT)) + 40
    assert prepared(tmp_path, digit_places=4, digit_offset=2).reused, "offsets do not change the files"
    assert not prepared(tmp_path, digit_places=5).reused


def config(*overrides: str) -> Config:
    base = Config(name="x", model=Gpt2Config(context=8, layers=1, heads=1, channels=4), batch_size=4, steps=3)
    return apply_overrides(base, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.tokenizer=bpe", "model.vocab_size=500"],
            r"data\.digits: expected plain, or abacus.*data\.tokenizer=bpe.*Hint: set data.tok",
        ),
        (["data.tokenizer=pretrained", "data.tokenizer_path=x"], r"data\.digits:.*Hint: leave data\.digits out"),
        (
            ["data.digit_places=5", "data.digit_offset=5"],
            r"data\.digit_offset: expected less than data\.digit_places = 5",
        ),
        (["data.digits=plain", "data.digit_offset=5"], r"data\.digit_offset: expected 0 with data\.digits=plain"),
    ],
)
def test_what_has_no_places_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(config("data.digits=abacus", *overrides))


def test_a_vocabulary_without_room_for_places_is_refused(tmp_path: Path) -> None:
    small = config("data.digits=abacus", "model.vocab_size=400")
    with pytest.raises(ConfigError, match=r"at least 402 for data\.tokenizer=characters and 40 places of digits"):
        prepare(small.data, small.model, StringText(TEXT), tmp_path)


def test_a_pretrained_tokenizer_without_places_has_no_offsets(tmp_path: Path) -> None:
    CharacterTokenizer("".join(sorted(set(TEXT)))).save(tmp_path / "tokenizer.json")
    path = f"data.tokenizer_path={tmp_path / 'tokenizer.json'}"
    plain = config("data.tokenizer=pretrained", path, "data.digit_offset=3")
    with pytest.raises(
        ConfigError, match="digit_offset: expected a tokenizer with more places of digits, got one with"
    ):
        prepare(plain.data, plain.model, StringText(TEXT), tmp_path / "data")


def test_settings_of_digits_belong_to_the_trajectory() -> None:
    assert not [key for key in trajectory(config()) if "digit" in key], "as in runs that earlier versions saved"
    found = trajectory(config("data.digits=abacus", "data.digit_offset=3"))
    assert {key: found[key] for key in found if "digit" in key} == {
        "data.digits": "abacus", "data.digit_places": 40, "data.digit_offset": 3,
    }  # fmt: skip


def test_runs_replay_and_resume_with_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    common = (
        "data.digits=abacus", "data.digit_places=9", "data.digit_offset=4", "schedule.decay_steps=6", "steps=6",
        "pictures=false",
    )  # fmt: skip
    whole = train(story(tmp_path, *common), tmp_path / "whole").run.checkpoint(6)
    for steps, mode in ((2, RunMode.NEW), (6, RunMode.RESUME)):
        train(story(tmp_path, *common, f"steps={steps}", "threads.forward=3"), tmp_path / "parts", mode)
    for name in ("model.safetensors", "optimizer.safetensors", "tokenizer.json"):
        other = tmp_path / "parts" / "checkpoints" / "step-000006" / name
        assert (whole / name).read_bytes() == other.read_bytes(), name
    model = Model.open(whole)
    assert model.geometry.vocabulary == len(set(TEXT)) + 90
    assert model.tokenizer.decode(model.prompt("12+3=")) == "12+3="
    assert evaluate_text(tmp_path / "whole", ()).characters_per_token == 1.0
    lines = export_opened(lambda: model, tmp_path / "export", "float32", 1 << 30)
    assert "threadloom reads this tokenizer.json" in lines[-1]
    assert load_tokenizer(tmp_path / "export").encode("12+3").tolist() == model.tokenizer.encode("12+3").tolist()
    with pytest.raises(TokenizerError, match="llama\\.cpp reads no other"):
        export_opened(lambda: model, tmp_path / "model.gguf", "float32", 1 << 30)
    settings = story(tmp_path, *common)
    data = prepare(settings.data, settings.model, StringText(TEXT), tmp_path / "data")
    resolved = resolve(settings, 2, data.tokenizer.vocab_size)
    trainings = [
        build(resolved, data=TokenBatches(data.train, resolved.batch_sizes, resolved.seed, data.offsets)) for _ in "12"
    ]
    threads, replay = result(trainings[0], run_threads(trainings[0])), result(trainings[1], run_sequence(trainings[1]))
    assert threads.updates == replay.updates
