"""Tokenizers: text to token ids and back, each saved as one JSON file that says by itself what it is.

`train_tokenizer` makes the one that a configuration asks for, `load_tokenizer` opens a saved one. Encoding loses
nothing but what a `CharacterTokenizer` with a limited alphabet maps to U+FFFD.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.stages.config import ConfigError, DataConfig, InputError, TokenizerKind

if TYPE_CHECKING:  # 3 MB that only byte-pair encoding needs
    import tokenizers

REPLACEMENT = "\ufffd"
"""What stands for the characters that a limited alphabet leaves out."""
END_OF_TEXT = "<|endoftext|>"
"""GPT-2's special token; its text is encoded as this one token."""

_FORMAT = "threadloom-tokenizer"
_CODE_POINTS = 0x110000
_CHUNK = 1 << 16


class TokenizerError(InputError):
    """A text or ids that a tokenizer cannot take, or a file that holds none."""


class Tokenizer(Protocol):
    """What the training and the sampling ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text, all in [0, vocab_size). TokenizerError where the text has no ids."""

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of ids. TokenizerError for one outside [0, vocab_size)."""

    def save(self, path: Path) -> None:
        """Write the tokenizer as JSON, which `load_tokenizer` opens; OSError as the system raises it."""


class CharacterTokenizer:
    """One id a character, in the order of the code points: nanoGPT's character-level tokenizer.

    Characters outside the alphabet become U+FFFD where that is in it (a limited alphabet), and are refused otherwise.
    """

    def __init__(self, alphabet: str) -> None:
        """`alphabet`: at least one character, each once, sorted by code point (ValueError if not)."""
        points = _code_points(alphabet)
        if not len(points) or np.any(points[1:] <= points[:-1]):
            raise ValueError("an alphabet needs at least one character, each once, in the order of the code points")
        self.alphabet = alphabet
        self._points = points
        self._ids = np.full(_CODE_POINTS, -1, np.int32)
        if REPLACEMENT in alphabet:
            self._ids[:] = alphabet.index(REPLACEMENT)
        self._ids[points] = np.arange(len(points), dtype=np.int32)

    @classmethod
    def train(cls, text: str, limit: int = 256) -> "CharacterTokenizer":
        """Return the tokenizer of the characters in `text`.

        If there are more than `limit`, the limit − 1 most frequent ones (of equals, those of lower code point) and
        U+FFFD for the others. `text` must not be empty (ValueError).
        """
        counts = np.bincount(_code_points(text), minlength=0)
        present = np.flatnonzero(counts)
        if len(present) > limit:
            ranked = present[np.argsort(-counts[present], kind="stable")]
            ranked = ranked[ranked != ord(REPLACEMENT)][: limit - 1]
            present = np.sort(np.append(ranked, ord(REPLACEMENT)))
        return cls(_text(present.astype(np.uint32)))

    @property
    def vocab_size(self) -> int:
        """Characters in the alphabet."""
        return len(self._points)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return one id a character. TokenizerError for one that is not in an alphabet without U+FFFD."""
        ids = self._ids[_code_points(text)]
        if len(ids) and ids.min() < 0:
            at = int(np.argmax(ids < 0))
            raise TokenizerError(
                f"character {at:,} of the text",
                expected=f"one of the {self.vocab_size} characters of the tokenizer",
                got=f"{text[at]!r} (U+{ord(text[at]):04X})",
                cause="the text that the model was trained on does not have this character",
                hint="leave it out, or train with a text that has it",
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """Return the characters of the ids."""
        return _text(self._points[_checked(ids, self.vocab_size)])

    def save(self, path: Path) -> None:
        """Write the alphabet as JSON."""
        _save(path, TokenizerKind.CHARACTERS, alphabet=self.alphabet)


class BytesTokenizer:
    """One id a byte of the text's UTF-8 form; any text can be encoded, and the vocabulary is always 256."""

    vocab_size = 256

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the bytes of the text."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of the bytes; U+FFFD where they are not UTF-8."""
        return _checked(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def save(self, path: Path) -> None:
        """Write a JSON file that names this tokenizer."""
        _save(path, TokenizerKind.BYTES)


class BpeTokenizer:
    """GPT-2's byte-level byte-pair encoding, by the `tokenizers` library; saved as Hugging Face's tokenizer.json."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "BpeTokenizer":
        """Return a tokenizer trained on the text, with at most `vocab_size` tokens (at least 257: bytes, end of text).

        Merges of pairs that occur once are not made, so a short text gives fewer tokens.
        """
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, processors, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(_chunks(text), trainer)
        return cls(tokenizer)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included."""
        return self._vocab_size

    @property
    def end_of_text(self) -> int | None:
        """The id of GPT-2's special token, if there is one."""
        return self._tokenizer.token_to_id(END_OF_TEXT)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of the text; the same as of its chunks, which are encoded side by side on all cores."""
        _utf8(text)
        parts = self._tokenizer.encode_batch_fast(list(_chunks(text)), add_special_tokens=False)
        ids = [np.array(part.ids, np.int32) for part in parts]
        return np.concatenate(ids) if ids else np.zeros(0, np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of the ids; U+FFFD where they end inside of a character."""
        return self._tokenizer.decode(_checked(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """Write Hugging Face's tokenizer.json."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")


def train_tokenizer(data: DataConfig, vocab_size: int | None, text: str) -> Tokenizer:
    """Return the tokenizer that the configuration asks for, made from `text` (not empty).

    `vocab_size` is the most ids that it may have; None: as many as it needs.

    ConfigError where the vocabulary is too small for the kind of tokenizer, or is open and must not be.
    """
    least = {TokenizerKind.CHARACTERS: 2, TokenizerKind.BYTES: 256, TokenizerKind.BPE: 257}[data.tokenizer]
    if (vocab_size is None and data.tokenizer is TokenizerKind.BPE) or (vocab_size is not None and vocab_size < least):
        raise ConfigError(
            "model.vocab_size",
            expected=f"at least {least} for data.tokenizer={data.tokenizer.value}",
            got="null" if vocab_size is None else f"{vocab_size}",
            cause="the vocabulary does not fit the kind of tokenizer",
            hint=f"set model.vocab_size to {least} or more, or another data.tokenizer",
        )
    match data.tokenizer:
        case TokenizerKind.BYTES:
            return BytesTokenizer()
        case TokenizerKind.BPE:
            assert vocab_size is not None
            return BpeTokenizer.train(text, vocab_size)
        case TokenizerKind.CHARACTERS:
            return CharacterTokenizer.train(text, min(data.alphabet, vocab_size or data.alphabet))


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer that a file holds, whichever it is; TokenizerError where it holds none that is whole."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__}")
        if content.get("format") != _FORMAT:
            import tokenizers

            try:
                return BpeTokenizer(tokenizers.Tokenizer.from_str(text))
            except Exception as error:  # the library raises nothing narrower
                raise ValueError(f"no tokenizer.json of Hugging Face ({error})") from error
        kind = TokenizerKind(content.get("kind"))
        if kind is TokenizerKind.BYTES:
            return BytesTokenizer()
        alphabet = content.get("alphabet")
        if not isinstance(alphabet, str) or len(alphabet) != content.get("size"):
            raise ValueError("an alphabet that is not whole")
        return CharacterTokenizer(alphabet)
    except (OSError, ValueError) as error:
        missing = isinstance(error, OSError)
        raise TokenizerError(
            str(path),
            expected="a tokenizer saved by threadloom, or a tokenizer.json of Hugging Face",
            got=(error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error),
            cause="the path is wrong or not permitted" if missing else "the file is damaged or of another kind",
            hint="check the path" if missing else "take it from another checkpoint, or prepare the text anew",
        ) from error


def _save(path: Path, kind: TokenizerKind, alphabet: str | None = None) -> None:
    content: dict[str, object] = {"format": _FORMAT, "kind": kind.value}
    if alphabet is not None:
        content |= {"size": len(alphabet), "alphabet": alphabet}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _text(points: NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _utf8(text: str) -> bytes:
    """The text's UTF-8 form; TokenizerError for a lone surrogate (an argument in another encoding)."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start:,} of the text",
            expected="a character that UTF-8 has",
            got=f"the lone surrogate U+{ord(text[error.start]):04X}",
            cause="the text was given in another encoding than the terminal's",
            hint="give it in UTF-8",
        ) from error


def _checked(ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """Return the ids as one dimension, each in [0, vocab_size), or raise TokenizerError."""
    array = np.asarray(ids, dtype=np.int64).ravel()
    wrong = (array < 0) | (array >= vocab_size)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise TokenizerError(
            f"token {at:,}",
            expected=f"an id from 0 to {vocab_size - 1}",
            got=f"{array[at]}",
            cause="the ids come from another tokenizer, or the model's vocabulary is larger than the tokenizer's",
            hint="use the tokenizer that lies beside the model",
        )
    return array


def _chunks(text: str) -> Iterator[str]:
    """Cut a text where GPT-2's pre-tokenizer cuts it in any case: after a line end between two visible characters."""
    start = 0
    for match in re.finditer(r"(?<=\S)\n(?=\S)", text):
        if match.end() - start >= _CHUNK:
            yield text[start : match.end()]
            start = match.end()
    if start < len(text):
        yield text[start:]
