"""Tokenizers of published models' kinds: ids equal to the library's, texts of any length, special tokens, folders."""

import json
import re
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings, strategies as st

from tests.stages.data.made_tokenizers import CHAT_TOKENS, LOSSLESS, MADE, TEXT
from threadloom.stages.config import SpecialTokens
from threadloom.stages.data import load_tokenizer
from threadloom.stages.data.library_tokenizer import LibraryTokenizer
from threadloom.stages.data.text_boundaries import Cut, find_boundaries
from threadloom.stages.data.tokenizer import TokenizerError

PIECES = (
    "a", "é", "e\u0301", "猫", " ", "  ", "\n", "\r\n", "'", "'s", "7", "42", "-", "🙂", "the cat", " sat", "\u3000",
    "▁", "x" * 60, "<|endoftext|>", "<|im_end|>", "<think>", "</s>", "<s>", " <mask>", "<end> ",
    "New York", "<0x41>", "\t",
)  # fmt: skip
WORDS_AND_LINES = (Cut.LINE_END, Cut.WORD_END)
BOUNDARIES = {
    "qwen": (WORDS_AND_LINES, 0, True),
    "smollm": (WORDS_AND_LINES, 0, True),
    "llama3": (WORDS_AND_LINES, 0, True),
    "neox": (WORDS_AND_LINES, 0, True),
    "stripping": (WORDS_AND_LINES, 0, True),
    "llama2": (WORDS_AND_LINES, 1, True),
    "unigram": ((Cut.WORD_END,), 0, True),
    "phrases": ((Cut.LINE_END,), 0, False),
}


@cache
def made(name: str) -> LibraryTokenizer:
    return LibraryTokenizer(MADE[name]())


@cache
def library(name: str) -> tokenizers.Tokenizer:
    """Return the library's tokenizer, without truncation and padding."""
    return tokenizers.Tokenizer.from_str(json.dumps(json.loads(MADE[name]()) | {"truncation": None, "padding": None}))


@pytest.mark.parametrize("name", BOUNDARIES)
def test_where_texts_can_be_cut_is_found(name: str) -> None:
    found = find_boundaries(library(name))
    assert (found.cuts, found.overlap, found.exact) == BOUNDARIES[name]


@pytest.mark.parametrize("name", [name for name in MADE if name != "phrases"])
@settings(deadline=None, max_examples=25)
@example(parts=[("a", 1), ("<end> ", 2), (" sat", 1)])  # a chunk might end in white space that a token takes
@given(parts=st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 12)), min_size=1, max_size=12))
def test_ids_of_a_text_in_chunks_are_those_of_the_library(name: str, parts: list[tuple[str, int]]) -> None:
    """Chunks of 16 characters end at lines and words, in runs without either, and next to added tokens."""
    text = "".join(piece * count for piece, count in parts)
    for special in SpecialTokens:
        whole = library(name)
        whole.encode_special_tokens = special is SpecialTokens.TEXT
        expected = whole.encode(text, add_special_tokens=False).ids
        with pytest.MonkeyPatch.context() as patch:
            for module in ("text_splitting", "library_tokenizer"):
                patch.setattr(f"threadloom.stages.data.{module}.CHUNK", 16)
            patch.setattr("threadloom.stages.data.text_splitting.LONGEST", 64)
            ids = made(name).with_special_tokens(special).encode(text).tolist()
        if name == "unigram" and special is SpecialTokens.TEXT:  # its model finds </s> in a text
            assert whole.token_to_id("</s>") not in ids
        else:
            assert ids == expected


@pytest.mark.parametrize("name", MADE)
def test_a_long_text_is_encoded_in_chunks(name: str) -> None:
    tokenizer, text = made(name), TEXT * 30
    chunks = list(tokenizer._splitter.chunks([text]))
    assert len(chunks) > 2
    assert max(map(len, chunks)) <= 1 << 16
    if name != "phrases":  # there, each chunk is a text
        assert tokenizer.encode(text).tolist() == library(name).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", [*LOSSLESS, "qwen"])
@settings(deadline=None, max_examples=25)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
@example(text=" ")
@example(text="  a")
def test_texts_survive(name: str, text: str) -> None:
    tokenizer = made(name)
    if name in ("llama2", "mistral"):
        text = text.replace("▁", "_")  # the space of these tokenizers
    expected = unicodedata.normalize("NFC", text) if name == "qwen" else text
    if name == "mistral":  # Metaspace adds U+2581 unless the text begins with one, and the decoder removes the first
        expected = expected.removeprefix(" ")
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_truncation_padding_and_dropout_are_not_applied() -> None:
    content = json.loads(MADE["llama3"]())
    content["model"]["dropout"] = 0.9
    content["model"]["ignore_merges"] = False
    tokenizer = LibraryTokenizer(json.dumps(content))
    ids = tokenizer.encode(TEXT[:300])
    assert tokenizer.decode(ids) == TEXT[:300]
    assert len(tokenizer.encode("a")) == 1
    assert tokenizer.encode(TEXT[:300]).tolist() == ids.tolist()
    assert len(ids) < 250


def test_special_tokens_are_tokens_or_text() -> None:
    tokenizer = LibraryTokenizer(MADE["qwen"]())
    text = "a<|im_end|>b<think>"
    as_tokens, as_text = (
        tokenizer.with_special_tokens(special) for special in (SpecialTokens.TOKENS, SpecialTokens.TEXT)
    )
    special = tokenizer._tokenizer.token_to_id("<|im_end|>")
    think = tokenizer._tokenizer.token_to_id("<think>")  # an added token that is not special
    assert special in as_tokens.encode(text)
    assert special not in as_text.encode(text)
    assert special in as_tokens.encode(text), "the two do not affect each other"
    assert think in as_text.encode(text)
    assert as_text.decode(as_text.encode(text)) == tokenizer.decode(tokenizer.encode(text)) == text


def test_the_ids_that_begin_a_text_are_those_of_the_post_processor() -> None:
    for name, token in (("llama2", "<s>"), ("llama3", "<|im_start|>")):
        tokenizer = LibraryTokenizer(MADE[name]())
        assert tokenizer.beginning.tolist() == [tokenizer._tokenizer.token_to_id(token)]
        assert tokenizer.beginning[0] not in tokenizer.encode("text")
    assert not len(LibraryTokenizer(MADE["qwen"]()).beginning)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"eos_token": "<|im_end|>"}, "<|im_end|>"),
        ({"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False}}, "<|im_end|>"),
        ({"eos_token": None}, "<|endoftext|>"),
        ({}, "<|endoftext|>"),
        (None, "<|endoftext|>"),
        ({"eos_token": "</s>"}, None),
    ],
)
def test_the_end_of_text_is_that_of_the_configuration(
    tmp_path: Path, config: dict[str, object] | None, expected: str | None
) -> None:
    (tmp_path / "tokenizer.json").write_text(MADE["qwen"]())
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(tmp_path).end_of_text
    assert (found.token if found else None) == expected


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(MADE["qwen"]())
    for content in (b"{", b"\xff", b'{"eos_token": 3}'):
        (tmp_path / "tokenizer_config.json").write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: expected JSON with `eos_token`"):
            load_tokenizer(tmp_path)


def test_the_file_is_saved_as_it_was_read(tmp_path: Path) -> None:
    LibraryTokenizer(MADE["llama3"]()).save(tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_text() == MADE["llama3"]()


def test_a_vocabulary_and_merges_are_those_of_gpt2(tmp_path: Path) -> None:
    content = json.loads(MADE["neox"]())
    model, merges = content["model"], "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokenizer, other = load_tokenizer(tmp_path), LibraryTokenizer(MADE["neox"]())
    text = re.sub(" +", " ", TEXT) + CHAT_TOKENS[0]  # without the tokens of several spaces
    assert tokenizer.encode(text).tolist() == other.encode(text).tolist()
    assert tokenizer.end_of_text == other.end_of_text
    for file in ("vocab.json", "merges.txt"):
        assert load_tokenizer(tmp_path / file).encode(text).tolist() == tokenizer.encode(text).tolist()
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(
        TokenizerError, match=r"vocab\.json and merges\.txt of a qwen2 model.*save_pretrained\(folder\)"
    ):
        load_tokenizer(tmp_path)
    for name, known in (("GPT2TokenizerFast", True), ("LlamaTokenizer", False), ("PreTrainedTokenizerFast", False)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "add_prefix_space": None}))
        if known:
            assert load_tokenizer(tmp_path).encode(text).tolist() == tokenizer.encode(text).tolist()
            continue
        with pytest.raises(
            TokenizerError, match=rf"merges\.txt of a {name} .*known of GPT2Tokenizer and Qwen2Tokenizer"
        ):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "merges.txt").write_text("a b c d\n")
    (tmp_path / "config.json").unlink()
    with pytest.raises(TokenizerError, match="expected the vocabulary and merges of a byte-pair tokenizer"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_and_merges_are_those_of_qwen2_if_the_class_says_so(tmp_path: Path) -> None:
    content = json.loads(MADE["qwen"]())
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(f"{' '.join(pair)}\n" for pair in content["model"]["merges"]))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    decoder = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in content["added_tokens"]}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, other = load_tokenizer(tmp_path), LibraryTokenizer(MADE["qwen"]())
    text = TEXT + "e\u0301 12345 <think>" + CHAT_TOKENS[1] + "\r\n \n"
    assert tokenizer.encode(text).tolist() == other.encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == other.decode(other.encode(text))


def test_added_tokens_beside_a_vocabulary_are_kept_whole(tmp_path: Path) -> None:
    model = json.loads(MADE["neox"]())["model"]
    size = len(model["vocab"])
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(f"{' '.join(pair)}\n" for pair in model["merges"]))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[tool]": size + 1, "<user>": size}))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<user>"}, "pad_token": "<none>"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<user>"}')
    tokenizer = load_tokenizer(tmp_path)
    as_tokens = tokenizer.with_special_tokens(SpecialTokens.TOKENS)
    assert as_tokens.encode("<user>[tool]").tolist() == [size, size + 1]
    assert size not in tokenizer.encode("<user>[tool]")
    assert size + 1 in tokenizer.encode("<user>[tool]"), "an added token that is not special"
    assert tokenizer.end_of_text is not None
    assert tokenizer.end_of_text.id == size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[tool]": size + 7}))
    with pytest.raises(TokenizerError, match=rf"expected the id {size + 7} for the token '\[tool\]'.*got {size}"):
        load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text("[]")
    with pytest.raises(TokenizerError, match=r"added_tokens\.json: expected JSON"):
        load_tokenizer(tmp_path)


def test_a_model_of_sentencepiece_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TokenizerError, match=r"got tokenizer\.model of a llama model"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: expected .* got No such file"):
        load_tokenizer(tmp_path)


def test_a_text_that_the_vocabulary_cannot_encode_is_refused() -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>"))
    with pytest.raises(TokenizerError, match="lacks a token for unknown characters"):
        LibraryTokenizer(made.to_str()).encode("b")


@pytest.mark.parametrize("name", MADE)
def test_ids_outside_the_vocabulary_are_rejected(name: str) -> None:
    tokenizer = LibraryTokenizer(MADE[name]())
    assert tokenizer.ids_with_text().max() == tokenizer.vocab_size - 1
    assert len(tokenizer.encode("")) == 0
    assert tokenizer.decode(np.zeros(0, np.int32)) == ""
    with pytest.raises(TokenizerError, match="an id from 0 to"):
        tokenizer.decode([tokenizer.vocab_size])
