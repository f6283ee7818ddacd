"""Training of byte-pair tokenizers: of long texts in a process, so that Ctrl-C and other signals end it at once.

The library trains in one call, during which Python handles no signals. GPT-2's pre-tokenizer has no limit on the length
of a word, and training takes time proportional to its square: a text without spaces, such as DNA, is one word. The
pattern here is GPT-2's with a maximum, so that words of at most that length are the same.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from loguru import logger

from threadloom.stages.console import JsonWorkerProcess, PeriodicLog, WorkerError, module_command
from threadloom.stages.data.tokenizer import TokenizerError
from threadloom.stages.machine import thread_limit

if TYPE_CHECKING:  # 3 MB that only byte-pair encoding needs
    from tokenizers.pre_tokenizers import PreTokenizer

END_OF_TEXT = "<|endoftext|>"
"""Special token of GPT-2, which is encoded as one token."""

WORD_CHARACTERS = 256
"""Maximum number of characters of a word; longer ones are cut into words of this length."""

IN_PROCESS_CHARACTERS = 1 << 19
"""Texts of at most this length are trained in this process, which takes about a second."""

_N = WORD_CHARACTERS
WORD_PATTERN = (
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}{{1,{_N}}}| ?\p{{N}}{{1,{_N}}}| ?[^\s\p{{L}}\p{{N}}]{{1,{_N}}}"
    rf"|\s{{1,{_N}}}(?!\S)|\s{{1,{_N}}}"
)


def limit_library_threads() -> None:
    """Let the library start as many threads as stages may use, unless RAYON_NUM_THREADS is set; before its first use.

    The library knows the cores and the CPU quota of the process, but not OMP_NUM_THREADS and SLURM_CPUS_PER_TASK.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(thread_limit().count))


def word_splitter() -> "PreTokenizer":
    """Return the pre-tokenizer of new tokenizers: that of GPT-2 with a maximum length of words."""
    limit_library_threads()
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train_byte_pairs(chunks: Iterable[str], limit: int) -> str:
    """Return the tokenizer.json of a tokenizer trained on the chunks of a text, with at most `limit` tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = word_splitter()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=limit,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(chunks, trainer)
    return tokenizer.to_str(pretty=True)


class _TrainingProcess(JsonWorkerProcess):
    @property
    def name(self) -> str:
        return "the process that trains the BPE tokenizer"


def train_in_process(chunks: Iterable[str], limit: int) -> str:
    """Return the result of `train_byte_pairs`, computed in a process that ends if this call does.

    A system that permits no further process trains in this one. Raises TokenizerError if the process ends early.
    """
    try:
        worker = _TrainingProcess(module_command("threadloom.stages.child_processes.train_bpe"), limit)
    except OSError as error:
        logger.debug("the BPE tokenizer is trained in this process, without another one: {}", error)
        return train_byte_pairs(chunks, limit)
    progress = PeriodicLog()
    try:
        with worker:
            characters = 0
            for chunk in chunks:
                worker.send(chunk)
                characters += len(chunk)
                progress("counting the words of the text: {:,} characters", characters)
            worker.send(None)
            while not worker.has_replied(1.0):
                progress("training the BPE tokenizer: {:.0f} s", progress.seconds)
            return str(worker.receive())
    except WorkerError as error:
        raise TokenizerError(
            worker.name,
            expected="a trained tokenizer",
            got=str(error),
            cause="the system may have killed it because the memory is full",
            hint="use a part of the text or fewer tokens (model.vocab_size)",
        ) from error
