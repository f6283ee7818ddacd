"""Small tokenizers of the kinds that published models have, trained on the spot; each returns a tokenizer.json."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXT = (
    "It's a plain text, we'll see.\n\nThe cat sat on the mat;\nx = '''42''' + 3.14 and 2026 numbers\r\n"
    "déjà vu 吾輩は猫である 🙂 größer\tend\u00a0of\u3000line  two  spaces\n    indented (code) { }\n"
) * 12

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def _train(tokenizer: Tokenizer, trainer: Any) -> dict[str, Any]:
    tokenizer.train_from_iterator([TEXT[start : start + 500] for start in range(0, len(TEXT), 500)], trainer)
    return dict(json.loads(tokenizer.to_str()))


def _byte_level(
    words: pre_tokenizers.PreTokenizer | None, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pieces]) if words is not None else pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def _byte_trainer(size: int = 420) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=list(CHAT_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )


@cache
def qwen() -> str:
    """Return a tokenizer as that of Qwen2: words by a regular expression, NFC, single digits, a token that is text."""
    tokenizer = _byte_level(pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"), normalizers.NFC())
    tokenizer.train_from_iterator([TEXT], _byte_trainer())
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return str(tokenizer.to_str())


@cache
def smollm() -> str:
    """Return a tokenizer as that of SmolLM2: GPT-2's words, each digit alone."""
    tokenizer = _byte_level(None)
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.train_from_iterator([TEXT], _byte_trainer())
    return str(tokenizer.to_str())


@cache
def llama3() -> str:
    """Return a tokenizer as that of Llama 3: whole words first, a token that begins texts, truncation in the file."""
    tokenizer = _byte_level(pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"))
    content = _train(tokenizer, _byte_trainer())
    content["model"]["ignore_merges"] = True
    content["post_processor"] = _template("<|im_start|>", content)
    content["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    return json.dumps(content)


@cache
def neox() -> str:
    """Return a tokenizer as that of Pythia: added tokens of several spaces, which are not special."""
    tokenizer = _byte_level(None)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([TEXT], _byte_trainer())
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in (4, 3, 2)])
    return str(tokenizer.to_str())


def _template(token: str, content: dict[str, Any]) -> dict[str, Any]:
    identifier = content["model"]["vocab"].get(token)
    if identifier is None:
        identifier = next(added["id"] for added in content["added_tokens"] if added["content"] == token)
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [identifier], "tokens": [token]}},
    }


@cache
def _sentencepiece() -> dict[str, Any]:
    """Return a tokenizer as SentencePiece trains it: words begin with U+2581, and bytes are tokens."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    lines = pre_tokenizers.Split(Regex(r"[\n\r\t]"), "removed")  # they have no tokens other than those of bytes
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace()])
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", *pieces], limit_alphabet=60
    )
    content = _train(tokenizer, trainer)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in pieces]
    content["post_processor"] = _template("<s>", content)
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return content


@cache
def llama2() -> str:
    """Return a tokenizer as that of Llama 2: a normalizer that prepends U+2581, and no pre-tokenizer."""
    normalizer = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    return json.dumps(_sentencepiece() | {"normalizer": normalizer, "pre_tokenizer": None})


@cache
def mistral() -> str:
    """Return a tokenizer as that of newer Mistral models: a pre-tokenizer with U+2581 at the beginning of a text."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return json.dumps(_sentencepiece() | {"pre_tokenizer": metaspace})


@cache
def unigram() -> str:
    """Return a Unigram tokenizer, with U+2581 before each word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<unk>", "</s>"], unk_token="<unk>"
    )
    return json.dumps(_train(tokenizer, trainer))


@cache
def wordpiece() -> str:
    """Return a WordPiece tokenizer, which lowercases a text and loses its white space."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    return json.dumps(_train(tokenizer, trainer))


@cache
def phrases() -> str:
    """Return a byte-level tokenizer without words, whose tokens reach across spaces and lines."""
    return json.dumps(_train(_byte_level(None), _byte_trainer(600)))


@cache
def stripping() -> str:
    """Return a byte-level tokenizer with added tokens that take the white space around them."""
    tokenizer = _byte_level(pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"))
    tokenizer.train_from_iterator([TEXT], _byte_trainer())
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<end>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("New York", single_word=True)])
    return str(tokenizer.to_str())


MADE: dict[str, Callable[[], str]] = {
    make.__name__: make
    for make in (qwen, smollm, llama3, neox, llama2, mistral, unigram, wordpiece, phrases, stripping)
}
"""Name → tokenizer.json."""
LOSSLESS = ("smollm", "llama3", "neox", "llama2", "mistral", "phrases")
"""Those that decode any text as it was, but for a first space (mistral); the qwen one is, if the text is NFC."""
