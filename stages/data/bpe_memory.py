"""The memory that byte-pair encoding takes for a text: the training in proportion to the different words of the text.

Their number is not known before the training. By Heaps' law a text of n characters has K·n^β different words; K and β
are taken from a sample of the text and from half of it. β falls with n in natural language, so that the estimate is
rather too high for a long text.
"""

import math

from threadloom.pipeline import available_cores
from threadloom.stages.data.bpe_training import IN_PROCESS_CHARACTERS, word_splitter
from threadloom.stages.data.chunked_text import ChunkedText

SLICE_CHARACTERS = 1 << 14
SAMPLE_CHARACTERS = 1 << 21
"""Length of the sample, which takes about a second."""

BYTES_PER_WORD_BYTE = 96
"""Bytes that the library takes per byte of the different words; measured as 69 to 89 (docs/performance.md)."""
TRAINING_BYTES = 40_000_000
"""Bytes that the library and the chunks that its training reads in advance take; measured."""
PROCESS_BYTES = 80_000_000
"""Bytes of the process that trains, and of the chunks that are sent to it; measured."""
CORE_BYTES = 24_000_000
"""Bytes per core of the tokens of the chunks that are encoded at a time: 3 tokens per character; measured."""


def bpe_bytes(text: ChunkedText) -> int:
    """Return the bytes of memory that training and encoding take for a text, the larger of the two."""
    process = PROCESS_BYTES if text.characters > IN_PROCESS_CHARACTERS else 0
    training = process + TRAINING_BYTES + BYTES_PER_WORD_BYTE * distinct_word_bytes(text)
    return max(training, CORE_BYTES * available_cores())


def distinct_word_bytes(text: ChunkedText) -> int:
    """Return the length of all different words of a text in UTF-8, in bytes: an estimate for a long text."""
    splitter, words = word_splitter(), set[str]()
    stride = text.characters // SAMPLE_CHARACTERS + 1
    characters, found = [0], [0]
    for half in _sample(text, stride):
        for part in half:
            words.update(word for word, _ in splitter.pre_tokenize_str(part))  # one character per byte
        characters.append(characters[-1] + sum(map(len, half)))
        found.append(sum(map(len, words)))
    if stride == 1 or characters[1] == characters[2]:
        return found[2]
    exponent = min(1.0, math.log(found[2] / found[1]) / math.log(characters[2] / characters[1]))
    return int(found[2] * (text.characters / characters[2]) ** exponent)


def _sample(text: ChunkedText, stride: int) -> tuple[list[str], list[str]]:
    """Return every slice of the text that `stride` divides, alternately in two lists."""
    halves: tuple[list[str], list[str]] = ([], [])
    number = 0
    for chunk in text.chunks():
        for start in range(0, len(chunk), SLICE_CHARACTERS):
            if number % stride == 0:
                halves[number // stride % 2].append(chunk[start : start + SLICE_CHARACTERS])
            number += 1
    return halves
