"""Ids equal to those of transformers' AutoTokenizer, on texts that tokenizers find difficult."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stages.data.made_tokenizers import MADE, TEXT
from threadloom.stages.config import SpecialTokens
from threadloom.stages.data import load_tokenizer
from threadloom.stages.data.bpe_tokenizer import BpeTokenizer
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.word_tokenizer import WordTokenizer

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


def planes() -> str:
    """Return some characters of every plane of Unicode, the last two of each among them; no surrogates."""
    points = [plane * 0x10000 + offset for plane in range(17) for offset in (*range(0, 0x10000, 977), 0xFFFE, 0xFFFF)]
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000 and point)


NASTY = {
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ☎️ 🙂🙂  🙂",
    "combining marks": "e\u0301 a\u0308\u0301 Z\u0351\u036b\u0343\u036a\u0302A\u033a\u033a\u0315\u035e "
    "o" + "\u0301" * 300,
    "composed": unicodedata.normalize("NFC", "Å é ñ ﬁ Ⅳ ２ 가") + unicodedata.normalize("NFD", "Å é ñ 가"),
    "line ends": "a\r\nb\rc\n\nd\u2028e\u2029f\x0bg\x0ch\x85i\r\n\r\n",
    "nul": "a\0b\0\0c \0 \x01\x02\x7f\x1b[0m",
    "long word": "x" * 100_000 + " " + "ab" * 50_000,
    "long white space": " " * 10_000 + "\t" * 5_000 + "\n" * 5_000 + "a" + " " * 3,
    "long digits": "1234567890" * 2_000,
    "planes": planes(),
    "right to left": "שלום עולם مرحبا بالعالم \u202bab\u202c \u200fab\u200e ١٢٣",
    "indic": "हिन्दी தமிழ் বাংলা ไทย ລາວ မြန်မာ",
    "white space": "a\u00a0b\u3000c\u2003d\u200be\ufefff",
    "special tokens": "a<|endoftext|>b <|im_start|>user\n<|im_end|></s><s> <mask> <end> x<think>y New York",
    "plain": TEXT * 20,
    "nothing": "",
    "space": " ",
}


def auto(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(folder))


def write_fast(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "tokenizer.json").write_text(MADE[name]())
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    return write


def write_bpe(folder: Path) -> None:
    BpeTokenizer.train(StringText(TEXT), 400).save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def write_words(folder: Path) -> None:
    WordTokenizer.train(StringText(TEXT), 60).save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt, with tokens that three other files add."""
    content = json.loads(MADE["llama3"]())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    size = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in merges))
    added = {
        str(size): {"content": "<mask>", "lstrip": True, "special": True},
        str(size + 1): {"content": "New York", "normalized": True},
    }
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    decoder = {number: flags | token for number, token in added.items()}
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


def write_qwen_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt of Qwen2, whose class tells its words."""
    content = json.loads(MADE["qwen"]())
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = "".join(f"{' '.join(pair)}\n" for pair in content["model"]["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
    decoder = {str(token.pop("id")): token for token in content["added_tokens"]}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "qwen2"}')


WRITERS = {name: write_fast(name) for name in MADE if name != "phrases"} | {
    "bpe": write_bpe,
    "words": write_words,
    "vocabulary and merges": write_vocabulary,
    "vocabulary and merges of Qwen2": write_qwen_vocabulary,
}


@pytest.mark.parametrize("name", WRITERS)
def test_ids_are_those_of_auto_tokenizer(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    theirs, ours = auto(tmp_path), load_tokenizer(tmp_path).with_special_tokens(SpecialTokens.TOKENS)
    for kind, text in NASTY.items():
        expected = theirs(text, add_special_tokens=False, verbose=False)["input_ids"]
        assert ours.encode(text).tolist() == expected, f"{name}: {kind}"
