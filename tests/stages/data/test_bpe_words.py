"""Long words in byte-pair encoding: a bound on their length, chunks of any text, training in a process."""

import json
import random
import signal
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings, strategies as st
from tokenizers import pre_tokenizers

from threadloom.stages.data import bpe_training
from threadloom.stages.data.bpe_tokenizer import BpeTokenizer
from threadloom.stages.data.bpe_training import WORD_CHARACTERS, train_byte_pairs, train_in_process
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.tokenizer import TokenizerError

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
WORDS = "It's  a\t plain text, we'll see\n\n  x = '''42''' + 3.14 \r\n déjà 吾輩は猫 🙂\u00a0\u3000end"
PIECES = ("a", "é", "猫", " ", "\n", "'", "'s", "7", "-", "🙂", "<|endoftext|>", "x" * 300, " " * 257, "é" * 256 + " b")


@pytest.fixture(scope="module")
def dna() -> str:
    return "".join(random.Random(1).choices("ACGT", k=200_000))


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return BpeTokenizer.train(StringText(WORDS * 3 + "<|endoftext|> ACGTACGT" * 4), 330)


def words(tokenizer: BpeTokenizer, text: str) -> list[str]:
    """Return the words as the library separates them, in its alphabet of bytes."""
    splitter = tokenizer._tokenizer.pre_tokenizer
    assert splitter is not None
    return [word for word, _ in splitter.pre_tokenize_str(text)]


@settings(deadline=None)
@given(text=st.lists(st.sampled_from([*PIECES[:-3], *WORDS]), max_size=60).map("".join))
def test_ordinary_words_are_those_of_gpt2(bpe: BpeTokenizer, text: str) -> None:
    assert words(bpe, text) == [word for word, _ in GPT2.pre_tokenize_str(text)]


def test_long_words_are_cut_at_characters(bpe: BpeTokenizer) -> None:
    assert [len(word) for word in words(bpe, "a" * 600)] == [256, 256, 88]
    assert len(words(bpe, "猫" * 300)[0]) == 256 * len("猫".encode())
    assert bpe.decode(bpe.encode("猫" * 300)) == "猫" * 300


def test_a_text_without_spaces_is_trained_in_linear_time(dna: str) -> None:
    """Merges of a word of n characters take n² steps: 200,000 characters in one word would take minutes."""
    tokenizer = BpeTokenizer.train(StringText(dna), 600)
    assert tokenizer.vocab_size == 600
    ids = tokenizer.encode(dna)
    assert tokenizer.decode(ids) == dna
    assert len(ids) < len(dna) / 3


@settings(deadline=None, max_examples=50)
@given(parts=st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 40)), min_size=1, max_size=8))
def test_chunks_do_not_change_the_ids(bpe: BpeTokenizer, parts: list[tuple[str, int]]) -> None:
    """Chunks of 16 characters instead of 65,536 end at lines, words and inside runs without either."""
    text = "".join(piece * count for piece, count in parts)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("text_splitting", "library_tokenizer"):
            patch.setattr(f"threadloom.stages.data.{module}.CHUNK", 16)
        patch.setattr("threadloom.stages.data.text_splitting.LONGEST", 64)
        chunks = list(bpe._splitter.chunks([text]))
        ids = bpe.encode(text).tolist()
    assert "".join(chunks) == text
    assert ids == bpe._tokenizer.encode(text).ids


def test_a_text_without_spaces_is_encoded_in_chunks(bpe: BpeTokenizer, dna: str) -> None:
    assert max(map(len, bpe._splitter.chunks([dna]))) <= 1 << 16
    assert bpe.encode(dna).tolist() == bpe._tokenizer.encode(dna).ids


def test_tokenizers_of_earlier_versions_encode_as_before(bpe: BpeTokenizer, tmp_path: Path) -> None:
    """Their file has GPT-2's pre-tokenizer, without a bound."""
    bpe.save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    content["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    old = BpeTokenizer(json.dumps(content))
    text = "ACGT" * 40_000 + " ordinary words\n" + "x" * 999
    assert old.encode(text).tolist() == tokenizers.Tokenizer.from_str(json.dumps(content)).encode(text).ids
    assert len(words(old, "a" * 600)) == 1 < len(words(bpe, "a" * 600))
    assert old.encode(WORDS).tolist() == bpe.encode(WORDS).tolist()


def test_the_process_trains_the_same_tokenizer() -> None:
    chunks = ["déjà vu\n" * 50, "ACGT" * WORD_CHARACTERS, "🙂 end"]
    assert train_in_process(chunks, 300) == train_byte_pairs(chunks, 300)


def test_a_signal_ends_the_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed in the middle of its work, and waited for."""
    started = []

    def has_replied(self: bpe_training._TrainingProcess, seconds: float) -> bool:
        started.append(self._process)
        signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(bpe_training._TrainingProcess, "has_replied", has_replied)
    with pytest.raises(KeyboardInterrupt):
        train_in_process(["abc " * 1000], 300)
    assert started[0].returncode == -signal.SIGKILL


def test_a_process_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_replied(self: bpe_training._TrainingProcess, seconds: float) -> bool:
        self._process.kill()
        return True

    monkeypatch.setattr(bpe_training._TrainingProcess, "has_replied", has_replied)
    with pytest.raises(TokenizerError, match=r"exited with status -9.*use a part of the text"):
        train_in_process(["abc"], 300)


def test_a_system_without_another_process_trains_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(bpe_training, "_TrainingProcess", refuse)
    assert train_in_process(["abc abc"], 300) == train_byte_pairs(["abc abc"], 300)
