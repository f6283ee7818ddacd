"""Tokenizers: lossless, equal to simple implementations, and damaged files are rejected."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings, strategies as st

from threadloom.stages.config import ConfigError, DataConfig, SpecialTokens, TokenizerKind
from threadloom.stages.data.bpe_tokenizer import BpeTokenizer
from threadloom.stages.data.bpe_training import word_splitter
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import REPLACEMENT, CharacterTokenizer
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.text_reading import standard_library_text
from threadloom.stages.data.tokenizer import Tokenizer, TokenizerError
from threadloom.stages.data.tokenizer_files import load_tokenizer
from threadloom.stages.data.tokenizer_registry import create_tokenizer

texts = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.fixture(scope="module")
def source() -> str:
    return standard_library_text(limit=400_000).read()


@pytest.fixture(scope="module")
def bpe(source: str) -> BpeTokenizer:
    return BpeTokenizer.train(StringText(source), 600)


@settings(deadline=None)
@given(texts.filter(bool))
def test_character_ids_equal_nanogpt(text: str) -> None:
    tokenizer = CharacterTokenizer.train(StringText(text), limit=1000)
    stoi = {character: place for place, character in enumerate(sorted(set(text)))}
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == [stoi[character] for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == len(stoi)


@settings(deadline=None)
@given(st.text("abcdeé\U0001f600\ufffd", min_size=1, max_size=60), st.integers(2, 6))
def test_a_limited_alphabet_keeps_the_most_frequent_characters(text: str, limit: int) -> None:
    tokenizer = CharacterTokenizer.train(StringText(text), limit)
    if len(set(text)) <= limit:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    ranked = sorted(Counter(text.replace(REPLACEMENT, "")).items(), key=lambda item: (-item[1], item[0]))
    kept = {character for character, _ in ranked[: limit - 1]}
    assert set(tokenizer.alphabet) == kept | {REPLACEMENT}
    assert tokenizer.vocab_size <= limit
    expected = "".join(character if character in kept else REPLACEMENT for character in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_a_character_outside_the_alphabet_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"character 2 .*'\?' \(U\+003F\)"):
        CharacterTokenizer("abc").encode("ab?c")
    assert CharacterTokenizer("ab" + REPLACEMENT).encode("a?b").tolist() == [0, 2, 1]
    for alphabet in ("", "ba", "aa"):
        with pytest.raises(ValueError, match="alphabet"):
            CharacterTokenizer(alphabet)


@settings(deadline=None)
@given(texts)
def test_byte_ids_equal_utf8(text: str) -> None:
    tokenizer = BytesTokenizer()
    assert tokenizer.encode(text).tolist() == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(text=texts)
def test_bpe_round_trip(bpe: BpeTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert ids.dtype == np.int32
    assert not len(ids) or 0 <= ids.min() <= ids.max() < bpe.vocab_size


def test_bpe_equals_a_simple_implementation(bpe: BpeTokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "t.json")
    model = json.loads((tmp_path / "t.json").read_text())["model"]
    for word in ("return", "selfish", "import", "zzz", "__init__"):
        pieces = list(word)
        for left, right in model["merges"]:
            at = 0
            while at < len(pieces) - 1:
                if pieces[at] == left and pieces[at + 1] == right:
                    pieces[at : at + 2] = [left + right]
                at += 1
        if word.isalpha():  # one piece of the pre-tokenizer
            assert bpe.encode(word).tolist() == [model["vocab"][piece] for piece in pieces]


def test_bpe_in_chunks_equals_bpe_of_the_whole_text(bpe: BpeTokenizer, source: str, tmp_path: Path) -> None:
    bpe.save(tmp_path / "t.json")
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json")).encode(source)
    assert bpe.encode(source).tolist() == whole.ids


def test_bpe_training_is_deterministic_and_limited(bpe: BpeTokenizer, source: str, tmp_path: Path) -> None:
    again = BpeTokenizer.train(StringText(source), 600)
    again.save(tmp_path / "a.json")
    bpe.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert bpe.vocab_size == 600
    assert bpe.end_of_text is not None
    as_tokens = bpe.with_special_tokens(SpecialTokens.TOKENS)
    assert as_tokens.encode("<|endoftext|>").tolist() == [bpe.end_of_text.id]
    assert bpe.end_of_text.id not in bpe.encode("<|endoftext|>")
    assert BpeTokenizer.train(StringText("abc"), 600).vocab_size == 257


@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.BYTES, TokenizerKind.BPE])
def test_saved_tokenizers_are_loaded(kind: TokenizerKind, tmp_path: Path) -> None:
    text = "a quick brown fox, é and \U0001f600\n" * 9
    made = create_tokenizer(DataConfig(tokenizer=kind), 300, StringText(text))
    path = tmp_path / "tokenizer.json"
    made.save(path)
    loaded = load_tokenizer(path)
    assert loaded.vocab_size == made.vocab_size
    assert loaded.encode(text).tolist() == made.encode(text).tolist()
    assert loaded.decode(made.encode(text)) == text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b'{"version": "1.0", "model": {"type": "BPE"}}',
        b'{"format": "threadloom-tokenizer"}',
        b'{"format": "threadloom-tokenizer", "kind": "words"}',
        b'{"format": "threadloom-tokenizer", "kind": "characters"}',
        b'{"format": "threadloom-tokenizer", "kind": "characters", "size": 2, "alphabet": "abc"}',
        b'{"format": "threadloom-tokenizer", "kind": "characters", "size": 2, "alphabet": "ba"}',
        b'{"format": "threadloom-tokenizer", "kind": "characters", "size": 2, "alphabet": [1, 2]}',
        b'{"format": "threadloom-tokenizer", "kind": "bpe"}',
    ],
)
def test_damaged_files_are_rejected(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="expected a tokenizer saved by threadloom") as caught:
        load_tokenizer(path)
    assert caught.value.subject == str(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="No such file"):
        load_tokenizer(tmp_path / "none.json")


@pytest.mark.parametrize(
    "make", [lambda: CharacterTokenizer("abc"), BytesTokenizer, lambda: BpeTokenizer.train(StringText("a"), 257)]
)
@pytest.mark.parametrize("wrong", [-1, 257, 10**12])
def test_ids_outside_the_vocabulary_are_rejected(make: "type[Tokenizer]", wrong: int) -> None:
    tokenizer = make()
    with pytest.raises(TokenizerError, match=f"token 1: .*got {wrong}"):
        tokenizer.decode([0, wrong])
    assert tokenizer.decode([]) == ""
    assert len(tokenizer.encode("")) == 0


@pytest.mark.parametrize("kind", [TokenizerKind.BYTES, TokenizerKind.BPE])
def test_a_lone_surrogate_is_rejected(kind: TokenizerKind) -> None:
    tokenizer = create_tokenizer(DataConfig(tokenizer=kind), 300, StringText("abc"))
    with pytest.raises(TokenizerError, match=r"U\+DCFF"):
        tokenizer.encode("a\udcff")


@pytest.mark.parametrize(
    ("kind", "size"),
    [(TokenizerKind.BYTES, 255), (TokenizerKind.BPE, 256), (TokenizerKind.BPE, None), (TokenizerKind.CHARACTERS, 1)],
)
def test_vocabularies_too_small_for_the_kind_are_rejected(kind: TokenizerKind, size: int | None) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size"):
        create_tokenizer(DataConfig(tokenizer=kind), size, StringText("abc"))


def test_the_alphabet_is_limited_by_both_settings() -> None:
    data = DataConfig(alphabet=4)
    assert create_tokenizer(data, None, StringText("abcdef")).vocab_size == 4
    assert create_tokenizer(data, 3, StringText("abcdef")).vocab_size == 3
    assert create_tokenizer(data, 30, StringText("abc")).vocab_size == 3


def test_threads_of_the_library_are_those_of_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rayon, which the library uses, reads its own variable only."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    word_splitter()
    assert os.environ["RAYON_NUM_THREADS"] == "1"
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    word_splitter()
    assert os.environ["RAYON_NUM_THREADS"] == "3"
