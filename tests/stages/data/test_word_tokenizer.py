"""The word tokenizer: the most frequent words, exact but for unknown ones, and its file."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.data.made_tokenizers import TEXT
from threadloom.stages.config import ConfigError, DataConfig, SpecialTokens, TokenizerKind
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.tokenizer_files import load_tokenizer
from threadloom.stages.data.tokenizer_registry import create_tokenizer
from threadloom.stages.data.word_tokenizer import UNKNOWN, WordTokenizer

ASCII_WORDS = re.compile(r" ?[a-z]+| ?[0-9]+| ?[^\sa-z0-9]+|\s+(?!\S)|\s")
"""The words of a text of lower-case letters, digits, signs, spaces and line ends, by Python's own expressions."""


def words_of(text: str) -> list[str]:
    return ASCII_WORDS.findall(text)


@settings(deadline=None, max_examples=12)
@given(text=st.text("ab1. \n", min_size=1, max_size=60), limit=st.integers(3, 12))
def test_the_most_frequent_words_are_the_vocabulary(text: str, limit: int) -> None:
    tokenizer = WordTokenizer.train(StringText(text), limit)
    ranked = sorted(Counter(words_of(text)).items(), key=lambda item: (-item[1], item[0]))
    kept = {word for word, _ in ranked[: limit - 2]}
    assert tokenizer.vocab_size == min(limit, 2 + len(ranked))
    assert tokenizer.decode(tokenizer.encode(text)) == "".join(w if w in kept else UNKNOWN for w in words_of(text))


@settings(deadline=None, max_examples=12)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_a_text_of_known_words_survives(text: str) -> None:
    tokenizer = WordTokenizer.train(StringText(text), 1000)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.min() >= 2, "neither unknown words nor ends of text"


def test_combining_marks_belong_to_their_letters() -> None:
    tokenizer = WordTokenizer.train(StringText("हिन्दी e\u0301t"), 100)
    assert len(tokenizer.encode("हिन्दी e\u0301t")) == 2


def test_a_long_text_has_the_ids_of_its_words(tmp_path: Path) -> None:
    tokenizer = WordTokenizer.train(StringText(TEXT), 40)
    text = TEXT * 20 + "x" * 100_000
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path)
    whole = loaded._tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]
    assert loaded.encode(text).tolist() == whole
    assert loaded.vocab_size == tokenizer.vocab_size == 40
    assert loaded.end_of_text == tokenizer.end_of_text


def test_special_tokens_written_in_a_text_are_words() -> None:
    tokenizer = WordTokenizer.train(StringText("a <unk> <|endoftext|> b"), 100)
    assert tokenizer.end_of_text is not None
    ids = tokenizer.encode("a <unk> <|endoftext|>")
    assert not np.isin(ids, [0, tokenizer.end_of_text.id]).any()
    ids = tokenizer.with_special_tokens(SpecialTokens.TOKENS).encode("a <unk> <|endoftext|>")
    assert np.isin([0, tokenizer.end_of_text.id], ids).all()


@pytest.mark.parametrize("size", [None, 2])
def test_the_vocabulary_must_be_given(size: int | None) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size.*at least 3"):
        create_tokenizer(DataConfig(tokenizer=TokenizerKind.WORDS), size, StringText("abc"))
