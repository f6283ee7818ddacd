"""Incremental decoding and stops, compared with the whole text."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from tests.stages.data.made_tokenizers import MADE
from threadloom.stages.data import TokenFile, Tokenizer
from threadloom.stages.data.bpe_tokenizer import BpeTokenizer
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.library_tokenizer import LibraryTokenizer
from threadloom.stages.inference.evaluated_text import decoded_size
from threadloom.stages.inference.text_stream import KEPT, StopSearch, TextStream

TEXT = "größer ☃ 😀 日本語 e\u0301 \ufffd the cat sat on the mat " * 3
TOKENIZERS: dict[str, Tokenizer] = {
    "bytes": BytesTokenizer(),
    "characters": CharacterTokenizer.train(StringText(TEXT)),
    "bpe": BpeTokenizer.train(StringText(TEXT), 300),
}


ALL: dict[str, Tokenizer] = {
    **TOKENIZERS,
    "llama2": LibraryTokenizer(MADE["llama2"]()),
    "qwen": LibraryTokenizer(MADE["qwen"]()),
}


def text_for(name: str) -> str:
    """Return a text that the tokenizer decodes as it is."""
    text = TEXT.replace("\ufffd", "")
    return unicodedata.normalize("NFC", text) if name == "qwen" else text


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    stream = TextStream(tokenizer.decode)
    return [*(stream.add(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("name", ALL)
def test_the_text_after_a_prompt_continues_it(name: str) -> None:
    """The first token of a text may lose its space, as in Llama 2."""
    tokenizer, text = ALL[name], text_for(name)
    ids = tokenizer.encode(text).tolist()
    for cut in range(len(ids)):
        prompt = tokenizer.decode(ids[:cut])
        if cut and "\ufffd" not in prompt:
            stream = TextStream(tokenizer.decode_following)
            assert prompt + "".join([*map(stream.add, ids[cut:]), stream.finish()]) == text


@pytest.mark.parametrize("name", ALL)
def test_the_pieces_of_a_text_are_whole_characters(name: str) -> None:
    tokenizer = ALL[name]
    text = text_for(name)
    found = pieces(tokenizer, tokenizer.encode(text).tolist())
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert found[-1] == ""


@pytest.mark.parametrize("name", ALL)
@given(numbers=st.lists(st.integers(0, 10**6), min_size=2, max_size=80))
@example(numbers=[0xF0, 0x9F, 0x98, 0x80] * 9)  # in bytes: four of one character
def test_characters_and_bytes_are_counted_in_parts(name: str, numbers: list[int]) -> None:
    """Parts of 5 ids instead of 65,536, cut anywhere; only runs of bytes without text may be counted differently."""
    tokenizer = ALL[name]
    ids = np.array([number % tokenizer.vocab_size for number in numbers], np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threadloom.stages.inference.evaluated_text._DECODED", 5)
        found = decoded_size(tokenizer, TokenFile(ids, tokenizer.vocab_size, 1, Path("validation.npy")))
    expected = tokenizer.decode(ids)
    if "\ufffd" not in expected:
        assert found == (len(expected), len(expected.encode()))
    ids = tokenizer.encode(expected.replace("\ufffd", "")).astype(np.uint16)
    if len(ids) > 1:
        found = decoded_size(tokenizer, TokenFile(ids, tokenizer.vocab_size, 1, Path("x")))
        assert found.characters == len(tokenizer.decode(ids))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(numbers=st.lists(st.integers(0, 10**6), max_size=80))
@example(numbers=[0x80] * 80)  # in bytes: never a character
@example(numbers=[0xEF, 0xBF, 0xBD] * 25)  # the replacement character itself
@example(numbers=[0xF0, 0x9F, 0x98, 0x80, 0xE2, 0x98, 0x83] * 11)
def test_the_pieces_of_any_ids_join_to_their_text(name: str, numbers: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    known = tokenizer.ids_with_text()
    ids = [int(known[number % len(known)]) for number in numbers]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_window_is_bounded(name: str) -> None:
    """Also for ids that never complete a character."""
    tokenizer = TOKENIZERS[name]
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(ids)

    for ids in (
        tokenizer.encode(TEXT * 3).tolist(),
        [tokenizer.encode("é" if name != "characters" else "ö")[-1]] * 200,
    ):
        stream = TextStream(decode)
        for token in ids:
            stream.add(int(token))
    assert longest <= 2 * KEPT + 4, "a character of 4 bytes has at most 3 tokens that do not begin it"


def stopped(stops: Sequence[str], parts: Sequence[str]) -> str:
    search, found = StopSearch(stops), ""
    for part in parts:
        found += search.add(part)
        if search.found:
            return found
    return found + search.finish()


@given(
    parts=st.lists(st.text("ab", max_size=3), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_the_first_stop_however_it_is_divided(parts: list[str], stops: list[str]) -> None:
    text = "".join(parts)
    # A stop is found when its last character arrives; of those found together, the first in the text counts.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    found = stopped(stops, parts)
    if not ends:
        assert found == text
    else:
        assert text.startswith(found)
        assert not any(stop in found for stop in stops)
        assert any(text[len(found) :].startswith(stop) for stop in stops)


def test_a_possible_stop_is_withheld_until_it_is_decided() -> None:
    search = StopSearch(["\n\n", "END"])
    assert [search.add(piece) for piece in ("a\n", "bE", "N", "x")] == ["a", "\nb", "", "ENx"]
    assert [search.add(piece) for piece in ("E", "ND of it")] == ["", ""]
    assert search.found
    assert np.all([stopped([], ["a", "b"]) == "ab", stopped(["z"], []) == ""])
