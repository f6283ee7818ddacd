"""Files of tokenizers: reading one, alone or in the folder of a model, and the files that accompany it there."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from threadloom.stages.config import TokenizerKind
from threadloom.stages.data.abacus_tokenizer import AbacusTokenizer
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.library_tokenizer import LibraryTokenizer
from threadloom.stages.data.number_tokenizer import NumberTokenizer
from threadloom.stages.data.tokenizer import FORMAT, Tokenizer, TokenizerError
from threadloom.stages.data.vocabulary_files import (
    ADDED_TOKENS_FILE,
    MERGES_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    read_vocabulary,
    vocabulary_folder,
)
from threadloom.stages.storage import plain_json

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATES_FOLDER = "additional_chat_templates"
MODEL_CONFIG_FILE = "model_config.json"
"""Name, in a prepared directory, of the config.json of the model that a pretrained tokenizer is of."""

COMPANIONS = (
    TOKENIZER_CONFIG_FILE,
    "generation_config.json",
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    TEMPLATE_FILE,
    "chat_template.json",
    VOCABULARY_FILE,
    MERGES_FILE,
    "tokenizer.model",
)
"""Files of a model's folder, other than tokenizer.json, that Hugging Face's libraries read its tokenizer from, its chat
template, and the tokens that end its texts."""

_PLAIN_NAME = re.compile(r"[\w.-]+", re.ASCII)
"""Names of additional templates; transformers allows no others."""

_OURS: Mapping[str, Callable[[dict[str, Any]], Tokenizer]] = {
    TokenizerKind.CHARACTERS.value: CharacterTokenizer.from_content,
    TokenizerKind.BYTES.value: BytesTokenizer.from_content,
    AbacusTokenizer.kind: AbacusTokenizer.from_content,
    NumberTokenizer.kind: NumberTokenizer.from_content,
}
"""Kind → reader of the content of a file in the format of this package."""


class _Token(msgspec.Struct):
    content: str


class _TokenizerConfig(msgspec.Struct):
    """The part of tokenizer_config.json that names the end of a text."""

    eos_token: str | _Token | None = None


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a file or, if the path is a folder, in its tokenizer.json.

    The end of a text is that of a tokenizer_config.json in the same folder. A folder of GPT-2 without a tokenizer.json
    may have vocab.json and merges.txt instead, either of which may also be the path. Raises TokenizerError if there is
    no tokenizer.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if (folder := vocabulary_folder(path)) is not None:
        return LibraryTokenizer(read_vocabulary(folder), configured_end_of_text(folder / TOKENIZER_CONFIG_FILE))
    try:
        text = plain_json(file.read_bytes()).decode()
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__}")
        if content.get("format") != FORMAT:
            return LibraryTokenizer(text, configured_end_of_text(file.with_name(TOKENIZER_CONFIG_FILE)))
        kind = str(content.get("kind"))
        if kind not in _OURS:
            raise ValueError(f"a tokenizer of the kind {kind!r}")
        return _OURS[kind](content)
    except (OSError, ValueError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(
            str(file),
            expected="a tokenizer saved by threadloom, or a tokenizer.json of Hugging Face",
            got=(error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error),
            hint=None if isinstance(error, OSError) else "take it from another checkpoint, or prepare the text again",
        ) from error


def companion_files(folder: Path) -> dict[str, Path]:
    """Return those of `COMPANIONS` that a folder has, and its additional chat templates: name in the folder → path."""
    templates = sorted(path for path in (folder / TEMPLATES_FOLDER).glob("*.jinja") if _PLAIN_NAME.fullmatch(path.name))
    names = [*COMPANIONS, *(f"{TEMPLATES_FOLDER}/{path.name}" for path in templates)]
    return {name: folder / name for name in names if (folder / name).is_file()}


def configured_end_of_text(path: Path) -> str | None:
    """Return the text of the token that ends a text, by a tokenizer_config.json; None if it names none."""
    try:
        found = msgspec.json.decode(plain_json(path.read_bytes()), type=_TokenizerConfig).eos_token
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(
            str(path),
            expected="JSON with `eos_token` a token, or null",
            got=f"{type(error).__name__}: {error}",
            hint="restore the file from a copy, or remove it",
        ) from error
    return found.content if isinstance(found, _Token) else found
