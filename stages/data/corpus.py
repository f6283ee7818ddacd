"""The texts of a run: one or several to train on, and one to validate on, if it is not a held-out part of them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec

from threadloom.stages.config import DataConfig, Packing
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.conversations.templates import absolute_template
from threadloom.stages.data.documents import Document
from threadloom.stages.data.sources.registry import reading_of
from threadloom.stages.data.text import SkippedRecords, Text, TextFile, ended
from threadloom.stages.data.text_files import LeftOut
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_paths import STANDARD_INPUT, absolute_text
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.data.token_file import DataError


class Cut(NamedTuple):
    """The length of the training split of a text."""

    characters: int
    """Of the running text."""
    documents: int | None
    """None for a running text, which is cut at a character."""


@dataclass(frozen=True)
class Corpus:
    """The texts of a run; `ChunkedText` other than `Text` has no files."""

    sources: tuple[ChunkedText, ...]
    """The texts to train on: one, or the entries of a mixture."""
    validation: ChunkedText | None = None
    """None: the last part of each source is held out."""

    @cached_property
    def text(self) -> ChunkedText:
        """All texts, one after another, which keep the counts of their characters."""
        return joined(self._texts)

    @property
    def characters(self) -> int:
        """Number of characters of all texts."""
        return sum(text.characters for text in self._texts)

    @property
    def documents(self) -> int | None:
        """Number of documents of all texts; None if they are running texts."""
        counts = [text.documents for text in self._texts if text.documents is not None]
        return sum(counts) if counts else None

    @property
    def files(self) -> tuple[TextFile, ...]:
        """The files of all texts, in order."""
        return tuple(file for text in self._read for file in text.files)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Files and directories that are not part of any text."""
        return tuple(found for text in self._read for found in text.left_out)

    @property
    def skipped(self) -> tuple[SkippedRecords, ...]:
        """Records that are not part of any text."""
        return tuple(found for text in self._read for found in text.skipped)

    def checksum(self) -> str:
        """Return the SHA-256 of the texts to train on: of a single one, its own."""
        if len(self.sources) == 1:
            return self.sources[0].checksum()
        return hashlib.sha256("".join(source.checksum() for source in self.sources).encode()).hexdigest()

    def validation_checksum(self) -> str | None:
        """Return the SHA-256 of the validation text, if there is one."""
        return None if self.validation is None else self.validation.checksum()

    def cuts(self, fraction: float, directory: Path) -> tuple[Cut, ...]:
        """Return the length of the training split of each source; `directory` is named in errors."""
        if self.validation is not None:
            return tuple(Cut(source.characters, source.documents) for source in self.sources)
        cuts = tuple(_cut(source, fraction) for source in self.sources)
        if (
            all(cut.documents == source.documents for cut, source in zip(cuts, self.sources, strict=True))
            and cuts[0].documents
        ):
            raise DataError(
                str(directory),
                expected="at least two documents, the last of which is for validation",
                got="one" if len(cuts) == 1 else "one in each source",
                hint="pass a validation text with data.validation_text",
            )
        return cuts

    @property
    def _texts(self) -> tuple[ChunkedText, ...]:
        return self.sources if self.validation is None else (*self.sources, self.validation)

    @property
    def _read(self) -> Iterator[Text]:
        return (text for text in self._texts if isinstance(text, Text))


def read_corpus(
    data: DataConfig,
    excluded: Sequence[Path] = (),
    standard_input: Path | None = None,
    scratch: Path | None = None,
) -> Corpus:
    """Return the texts of a configuration; raises TextError as `read_text`, without `excluded` directories.

    `standard_input` is a file with the content of standard input, if that is one of the texts. A temporary file of
    rendered conversations is on the disk of the path `scratch`, which need not exist, or in the folder of such files.
    """
    disk = None if scratch is None else next(path for path in (scratch, *scratch.absolute().parents) if path.is_dir())
    reading = reading_of(data, disk)

    def read(paths: Sequence[str]) -> Text:
        return read_text(paths, excluded, reading=reading)

    spooled = STANDARD_INPUT if standard_input is None else str(standard_input)
    paths = [spooled if path == STANDARD_INPUT else path for path in data.text]
    sources = [read([path]) for path in paths] if data.mixture else [read(paths)]
    packed = data.packing is Packing.DOCUMENTS
    if packed or any(source.documents is not None for source in sources):  # they are in one token file
        sources = [source.as_documents() for source in sources]
    validation = read(data.validation_text) if data.validation_text else None
    if validation and (packed or data.bordered):
        validation = validation.as_documents()
    return Corpus(*_of_one_kind(sources, validation))


def with_absolute_paths(data: DataConfig) -> DataConfig:
    """Return settings whose paths are valid in any directory, so that a run may be resumed in another one."""
    return msgspec.structs.replace(
        data,
        text=tuple(map(absolute_text, data.text)),
        validation_text=tuple(map(absolute_text, data.validation_text)),
        tokenizer_path=absolute_text(data.tokenizer_path) if data.tokenizer_path else "",
        chat_template=absolute_template(data.chat_template),
        prepared=absolute_text(data.prepared) if data.prepared else "",
    )


def _of_one_kind(sources: Sequence[Text], validation: Text | None) -> tuple[tuple[Text, ...], Text | None]:
    """Return texts that are all token files with the largest id of all of them, or texts; raises TextError."""
    texts = [*sources, *([] if validation is None else [validation])]
    ids = [text.largest_id for text in texts if text.largest_id is not None]
    if ids and len(ids) < len(texts):
        named = {text.largest_id is None: text.files[0].path for text in texts}
        raise TextError(
            str(named[False]),
            expected="texts alone, or token files alone, in data.text and data.validation_text",
            got=f"token ids in this file, and text in {named[True]}",
            hint="write the text to a token file with the same tokenizer, or pass texts alone",
        )
    if ids:
        texts = [replace(text, largest_id=max(ids)) for text in texts]
    return tuple(texts[: len(sources)]), None if validation is None else texts[-1]


def joined(texts: Sequence[ChunkedText]) -> ChunkedText:
    """Return the running text of several texts, one after another."""
    return texts[0] if len(texts) == 1 else _Joined(texts)


class _Joined(ChunkedText):
    """Several texts, one after another."""

    def __init__(self, texts: Sequence[ChunkedText]) -> None:
        self.characters = sum(text.characters for text in texts)
        self.largest_id = texts[0].largest_id
        self._texts = tuple(texts)

    def chunks(self) -> Iterator[str]:
        for text in self._texts:
            yield from text.chunks()


def _cut(text: ChunkedText, fraction: float) -> Cut:
    """Return the cut at a fraction of the characters: for documents, after the first or the last that ends before."""
    wanted = int(text.characters * fraction)
    if text.documents is None:
        return Cut(wanted, None)
    characters = count = 0
    for part in text.parts():
        size = len(ended(part.text)) if isinstance(part, Document) else part.characters
        if count and characters + size > wanted:
            break
        characters, count = characters + size, count + 1
    return Cut(characters, count)
