"""A byte-level tokenizer as GPT-2's or Qwen2's, from vocab.json and merges.txt, with the tokens that files beside add.

vocab.json and merges.txt do not tell how a text is separated into words, which differs between models. The class in
tokenizer_config.json does; without one it is GPT-2's, unless config.json names another model. Special and added tokens
are in added_tokens.json, special_tokens_map.json and tokenizer_config.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from threadloom.stages.data.bpe_training import END_OF_TEXT, limit_library_threads
from threadloom.stages.data.tokenizer import TokenizerError
from threadloom.stages.storage import plain_json

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE = "added_tokens.json", "special_tokens_map.json"

_GPT2 = frozenset({"GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast"})
_QWEN2 = frozenset({"Qwen2Tokenizer", "Qwen2TokenizerFast"})
"""Classes of transformers whose words are those of GPT-2, and of Qwen2, which also composes characters (NFC)."""

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_T = TypeVar("_T")


class _Token(msgspec.Struct, frozen=True):
    content: str
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False
    special: bool = False


class _TokenizerConfig(msgspec.Struct):
    """The part of tokenizer_config.json that decides ids."""

    added_tokens_decoder: dict[int, _Token] = {}
    add_prefix_space: bool | None = None
    tokenizer_class: str | None = None


class _ModelConfig(msgspec.Struct):
    """The part of config.json that decides which tokenizer vocab.json and merges.txt are of."""

    model_type: str = "gpt2"


def vocabulary_folder(path: Path) -> Path | None:
    """Return the folder whose vocab.json and merges.txt a path names; None if it names another kind of tokenizer."""
    if path.is_dir():
        others = (VOCABULARY_FILE, MERGES_FILE, "tokenizer.model")
        return path if not (path / TOKENIZER_FILE).exists() and any((path / name).exists() for name in others) else None
    return path.parent if path.name in (VOCABULARY_FILE, MERGES_FILE) else None


def read_vocabulary(folder: Path) -> str:
    """Return the tokenizer.json of the vocab.json and merges.txt in a folder.

    Raises TokenizerError for the files of a model whose words are unknown, and for damaged ones.
    """
    vocabulary, merges = folder / VOCABULARY_FILE, folder / MERGES_FILE
    config = _read(folder / TOKENIZER_CONFIG_FILE, _TokenizerConfig) or _TokenizerConfig()
    name = config.tokenizer_class
    known = name in _GPT2 | _QWEN2 if name else _model_type(folder / "config.json") == "gpt2"
    if not known or not (vocabulary.exists() and merges.exists()):
        names = (VOCABULARY_FILE, MERGES_FILE, "tokenizer.model")
        raise TokenizerError(
            str(folder / TOKENIZER_FILE),
            expected="a tokenizer.json of Hugging Face",
            got=f"{' and '.join(name for name in names if (folder / name).exists())} of a "
            + (name or f"{_model_type(folder / 'config.json')} model"),
            cause="they do not tell how a text is separated into words, which is known of GPT2Tokenizer and "
            f"Qwen2Tokenizer as the tokenizer_class in {TOKENIZER_CONFIG_FILE}",
            hint="write it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    limit_library_threads()
    from tokenizers import ByteLevelBPETokenizer

    prefix_space = bool(config.add_prefix_space)
    try:
        tokenizer = ByteLevelBPETokenizer(str(vocabulary), str(merges), add_prefix_space=prefix_space)
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(
            f"{vocabulary} and {merges}",
            expected="the vocabulary and merges of a byte-pair tokenizer",
            got=str(error),
            hint="restore the files from a copy",
        ) from error
    if name in _QWEN2:
        _use_words_of_qwen2(tokenizer, prefix_space=prefix_space)
    _add_tokens(tokenizer, folder, config)
    return str(tokenizer.to_str())


def _use_words_of_qwen2(tokenizer: Any, *, prefix_space: bool) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated")
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pieces])


def _add_tokens(tokenizer: Any, folder: Path, config: _TokenizerConfig) -> None:
    """Add the tokens that the files of a folder name, in the order of their ids; raises TokenizerError."""
    from tokenizers import AddedToken

    tokens = {token.content: (number, token) for number, token in config.added_tokens_decoder.items()}
    for content, number in (_read(folder / ADDED_TOKENS_FILE, dict[str, int]) or {}).items():
        tokens.setdefault(content, (number, _Token(content)))
    special = _special_tokens(folder)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        special.setdefault(END_OF_TEXT, _Token(END_OF_TEXT))
    for content, token in special.items():
        known = tokenizer.token_to_id(content)
        number = tokens[content][0] if content in tokens else known
        if number is not None:
            found = tokens[content][1] if content in tokens else token
            tokens[content] = (number, msgspec.structs.replace(found, special=True))
    for content, (number, token) in sorted(tokens.items(), key=lambda item: item[1][0]):
        options = {name: value for name, value in msgspec.structs.asdict(token).items() if name != "content"}
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([AddedToken(content, **options)])
        if (found_id := tokenizer.token_to_id(content)) != number:
            raise TokenizerError(
                str(folder),
                expected=f"the id {number} for the token {content!r}, which a file there adds",
                got=f"{found_id}",
                cause=f"{VOCABULARY_FILE} is of another model than the files beside it, or has gaps",
                hint="restore the files from a copy",
            )


def _special_tokens(folder: Path) -> dict[str, _Token]:
    """Return the tokens of special_tokens_map.json by their text."""
    found = dict[str, _Token]()
    for value in (_read(folder / SPECIAL_TOKENS_FILE, dict[str, Any]) or {}).values():
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, str):
                found[token] = _Token(token)
            elif isinstance(token, Mapping) and isinstance(token.get("content"), str):
                found[token["content"]] = msgspec.convert(token, _Token, strict=False)
    return found


def _read(path: Path, kind: type[_T]) -> _T | None:
    """Return the content of a JSON file; None if there is none. Raises TokenizerError for a damaged one."""
    try:
        return msgspec.json.decode(plain_json(path.read_bytes()), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(
            str(path),
            expected="JSON with the tokens of a tokenizer",
            got=f"{type(error).__name__}: {error}",
            hint="restore the file from a copy, or remove it",
        ) from error


def _model_type(path: Path) -> str:
    try:
        return msgspec.json.decode(plain_json(path.read_bytes()), type=_ModelConfig).model_type
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return "gpt2"
