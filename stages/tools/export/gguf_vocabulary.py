"""The vocabulary of a tokenizer.json as llama.cpp reads it from a GGUF file.

llama.cpp has two kinds that are written here: `gpt2`, byte-level byte pairs, and `llama`, SentencePiece with bytes for
unknown characters, where the pair with the highest score is merged first: minus the rank of its merge.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from threadloom.stages.data import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WORD_PATTERN, Tokenizer, TokenizerError
from threadloom.stages.storage import plain_json

if TYPE_CHECKING:
    import gguf

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {WORD_PATTERN: "gpt-2", _QWEN2: "qwen2", _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}
"""Regular expression of words → its name in llama.cpp. Ours is that of GPT-2 with a limit on the length of words."""

NO_MERGE = "▁ ▁"
"""The only merge of a tokenizer that has none: llama.cpp needs one. This character is not one of those that stand for
the bytes of a text, so it merges nothing."""


@dataclass(frozen=True)
class GgufVocabulary:
    """The entries `tokenizer.*` of a file."""

    model: str
    """gpt2 or llama."""
    pre_tokenizer: str
    tokens: list[str]
    """Token of each row of the embedding."""
    types: list[int]
    """Its `gguf.TokenType`."""
    merges: list[str]
    """Pairs of tokens, separated by a space; gpt2 only."""
    scores: list[float]
    """Of the tokens; llama only."""
    end: int | None
    begin: int | None
    """Id that is put before a text."""
    space_prefix: bool
    """True: a text begins with a space; llama only."""
    chat_template: str | None

    def write(self, writer: "gguf.GGUFWriter") -> None:
        """Add the entries."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        if self.end is not None:
            writer.add_eos_token_id(self.end)
        if self.begin is not None:
            writer.add_bos_token_id(self.begin)
        writer.add_add_bos_token(self.begin is not None)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, tokenizer: Tokenizer, rows: int) -> GgufVocabulary:
    """Return the vocabulary of a model's folder for an embedding of `rows` rows.

    Rows without a token are of the type UNUSED. Raises TokenizerError for a tokenizer that llama.cpp does not have.
    """
    path = folder / TOKENIZER_FILE
    content = json.loads(plain_json(path.read_bytes())) if path.exists() else {}
    model = content.get("model", {})
    byte_level = "ByteLevel" in _types(content.get("pre_tokenizer"))
    spaces = "▁" in json.dumps([content.get("normalizer"), content.get("pre_tokenizer")], ensure_ascii=False)
    if model.get("type") != "BPE" or not (byte_level or (spaces and model.get("byte_fallback"))):
        raise TokenizerError(
            str(path),
            expected="a byte-pair tokenizer, byte-level or with bytes for unknown characters",
            got=f"a tokenizer of the type {model.get('type') or content.get('kind') or 'unknown'}",
            cause="llama.cpp reads no other",
            hint="export a folder instead, or train with data.tokenizer=bpe",
        )
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    tokens, types = _tokens(content, rows)
    ranks = {left + right: rank for rank, (left, right) in reversed(list(enumerate(merges)))}
    beginning = tokenizer.beginning
    return GgufVocabulary(
        model="gpt2" if byte_level else "llama",
        pre_tokenizer=_pre_tokenizer(content["pre_tokenizer"]) if byte_level else "default",
        tokens=tokens,
        types=types,
        merges=[" ".join(pair) for pair in merges] or [NO_MERGE],
        scores=[-float(ranks.get(token, 0)) for token in tokens],
        end=None if tokenizer.end_of_text is None else tokenizer.end_of_text.id,
        begin=int(beginning[0]) if len(beginning) else None,
        space_prefix=bool({"Prepend"} & _types(content.get("normalizer")))
        or (content.get("pre_tokenizer") or {}).get("prepend_scheme", "never") != "never",
        chat_template=_chat_template(folder),
    )


def _tokens(content: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return the token of each row and its type."""
    import gguf

    kind = gguf.TokenType
    found = {number: (token, _type_of(token, content["model"])) for token, number in content["model"]["vocab"].items()}
    for added in content.get("added_tokens", []):
        special = kind.CONTROL if added["special"] else kind.USER_DEFINED
        is_unknown = added["content"] == content["model"].get("unk_token")
        found[added["id"]] = (added["content"], kind.UNKNOWN if is_unknown else special)
    listed = [found.get(row, (f"[PAD{row}]", kind.UNUSED)) for row in range(rows)]
    return [token for token, _ in listed], [int(type_) for _, type_ in listed]


def _type_of(token: str, model: Mapping[str, Any]) -> "gguf.TokenType":
    import gguf

    if model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def _types(part: Any) -> set[str]:
    """Return the types of a normalizer or pre-tokenizer, and of the parts of a sequence."""
    if not isinstance(part, dict):
        return set()
    parts = [*part.get("pretokenizers", ()), *part.get("normalizers", ())]
    return {str(part["type"])}.union(*map(_types, parts))


def _pre_tokenizer(part: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for the separation of words by a byte-level pre-tokenizer."""
    parts = part.get("pretokenizers", [part])
    splits = [found["pattern"].get("Regex", "") for found in parts if found["type"] == "Split"]
    by_library = any(found["type"] == "ByteLevel" and found.get("use_regex", True) for found in parts)
    if len(splits) == 1 and not by_library and splits[0] in _PRE_TOKENIZERS:
        return _PRE_TOKENIZERS[splits[0]]
    if by_library and not splits:
        if {found["type"] for found in parts} == {"ByteLevel"}:
            return "gpt-2"
        if any(found["type"] == "Digits" and found.get("individual_digits") for found in parts):
            return "smollm"
    logger.warning(
        "the way in which the tokenizer separates words has no name of llama.cpp that is known here: the file names it "
        "default, and llama.cpp may encode texts differently"
    )
    return "default"


def _chat_template(folder: Path) -> str | None:
    """Return the chat template of a model's folder, if it is a single one."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    path = folder / TOKENIZER_CONFIG_FILE
    found = json.loads(plain_json(path.read_bytes())).get("chat_template") if path.exists() else None
    return found if isinstance(found, str) else None
