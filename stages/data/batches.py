"""Where the batches come from: pure functions of (seed, batch, micro-batch) that write into the caller's buffers.

Guarantees: `fill` gives the same bits for the same (batch, micro) in any order and from any thread, holds no state, and
checks every id before it returns. A batch is a list of sequences numbered from 0; micro-batch m of size b has the
numbers m·b to (m+1)·b − 1. What sequence s of batch k is follows from (seed, k, s) alone, by the counter-based
generator Philox (Salmon et al. 2011): another micro-batch size, other lanes, or k accumulation steps of b sequences
instead of one of k·b move no sequence.

Shapes: R = b·T rows of a micro-batch, b sequences of T = context tokens one after another.

Token files are in `stages.data.token_file`, the preparation of a text in `stages.data.dataset`; both can be imported
from here.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import ResolvedConfig
from threadloom.stages.data.dataset import Dataset, Manifest, Split, prepare, require_same_text
from threadloom.stages.data.token_file import DataError, TokenFile, token_type

__all__ = [
    "BatchSource",
    "DataError",
    "Dataset",
    "EvaluationWindows",
    "Manifest",
    "RandomTokens",
    "Split",
    "TokenBatches",
    "TokenFile",
    "TokenIds",
    "evaluation_batches",
    "prepare",
    "random_batches",
    "require_same_text",
    "token_type",
    "training_batches",
]

TokenIds = NDArray[np.int32]

_STARTS, _RANDOM_TOKENS = 0x7374_6172_7473, 0x746F_6B65_6E73
"""Second words of the generators' keys: each use has a stream of its own under one seed."""


class BatchSource(Protocol):
    """What the data stage draws from."""

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the input ids (R,) and target ids (R,) of one micro-batch into the caller's contiguous buffers.

        Allocates nothing of note, and may be called from any thread in any order. DataError for an id outside of the
        vocabulary; ValueError for a micro-batch that the batch does not have, or buffers of another size.
        """


class TokenBatches:
    """Training batches: windows of a token file that start anywhere with equal chance, drawn with replacement.

    Start of sequence s of batch k: ⌊u · starts / 2^64⌋ with u the first 64-bit draw of Philox4x64-10 keyed by
    (seed, stream) at the counter (1, s, k, 0), which is where NumPy's begins when set to (0, s, k, 0).
    The chances of two starts differ by less than one in 2^64 / starts.
    """

    def __init__(self, tokens: TokenFile, *, sequences: int, micro_batch: int, seed: int) -> None:
        """`sequences`: those of one update, gradient accumulation included; `micro_batch` divides it (ValueError)."""
        self._tokens, self._sequences, self._micro_batch, self._seed = tokens, sequences, micro_batch, seed
        _require_division(sequences, micro_batch)

    def start(self, batch: int, sequence: int) -> int:
        """Return the position in the token file at which a sequence of a batch begins."""
        return int(_generator(self._seed, _STARTS, batch, sequence).random_raw()) * self._tokens.starts >> 64

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the windows of one micro-batch; see BatchSource."""
        first, length = micro * self._micro_batch, self._tokens.context
        _require_buffers(micro, self._sequences // self._micro_batch, self._micro_batch * length, ids, targets)
        for row in range(self._micro_batch):
            span = slice(row * length, (row + 1) * length)
            self._tokens.read(self.start(batch, first + row), ids[span], targets[span])


class RandomTokens:
    """Uniformly random tokens, for benchmarks: nothing can be learned from them, and no file is needed.

    Sequence s of batch k is drawn from Philox keyed by (seed, stream) from the counter (1, s, k, 0) on; its targets are
    its ids one further on.
    """

    def __init__(self, vocab_size: int, context: int, *, sequences: int, micro_batch: int, seed: int) -> None:
        """`sequences`: those of one update; `micro_batch` divides it (ValueError)."""
        self._vocab_size, self._context, self._seed = vocab_size, context, seed
        self._sequences, self._micro_batch = sequences, micro_batch
        _require_division(sequences, micro_batch)

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the random sequences of one micro-batch; see BatchSource."""
        first, length = micro * self._micro_batch, self._context
        _require_buffers(micro, self._sequences // self._micro_batch, self._micro_batch * length, ids, targets)
        for row in range(self._micro_batch):
            generator = np.random.Generator(_generator(self._seed, _RANDOM_TOKENS, batch, first + row))
            window = generator.integers(self._vocab_size, size=length + 1, dtype=np.int32)
            ids[row * length : (row + 1) * length] = window[:-1]
            targets[row * length : (row + 1) * length] = window[1:]


class EvaluationWindows:
    """A fixed list of windows over a split, the same at every evaluation; `evaluation_batches` chooses them."""

    def __init__(self, tokens: TokenFile, starts: NDArray[np.int64], micro_batch: int) -> None:
        """`starts`: where the windows begin, a multiple of `micro_batch` of them (ValueError)."""
        _require_division(len(starts), micro_batch)
        if len(starts) and (starts.min() < 0 or starts.max() >= tokens.starts):
            raise ValueError(f"windows start from 0 to {tokens.starts - 1}, got {starts.min()} to {starts.max()}")
        self.starts = starts.copy()
        self.starts.flags.writeable = False
        self._tokens, self._micro_batch = tokens, micro_batch

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one evaluation: `micro` runs from 0 to this."""
        return len(self.starts) // self._micro_batch

    @property
    def tokens(self) -> int:
        """Target tokens of one evaluation, over which the mean loss is taken."""
        return len(self.starts) * self._tokens.context

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Write the windows of one micro-batch; they are the same for every `batch`. See BatchSource."""
        first, length = micro * self._micro_batch, self._tokens.context
        _require_buffers(micro, self.micro_batches, self._micro_batch * length, ids, targets)
        for row in range(self._micro_batch):
            span = slice(row * length, (row + 1) * length)
            self._tokens.read(int(self.starts[first + row]), ids[span], targets[span])


def training_batches(config: ResolvedConfig, tokens: TokenFile) -> TokenBatches:
    """Return the training batches of a resolved configuration."""
    return TokenBatches(tokens, sequences=config.sequences, micro_batch=config.micro_batch, seed=config.seed)


def random_batches(config: ResolvedConfig) -> RandomTokens:
    """Return random batches in the sizes of a resolved configuration."""
    model = config.model
    return RandomTokens(
        model.vocab_size,
        model.context,
        sequences=config.sequences,
        micro_batch=config.micro_batch,
        seed=config.seed,
    )


def evaluation_batches(tokens: TokenFile, *, batch_size: int, micro_batch: int, batches: int) -> EvaluationWindows:
    """Choose the windows of an evaluation: at most `batches` × `batch_size` of them, in whole micro-batches.

    A split of N tokens has ⌊(N − 1) / T⌋ windows that do not overlap. All of them are taken if that is no more than was
    asked for, else as many as were asked for, evenly spaced. Only whole micro-batches are computed, so up to
    micro_batch − 1 windows are left out, evenly spaced again. A split with fewer windows than one micro-batch is
    covered by one micro-batch of overlapping windows, from the first token to the last.
    """
    available = (len(tokens) - 1) // tokens.context
    count = min(available, batches * batch_size) // micro_batch * micro_batch
    if count:
        starts = np.arange(count, dtype=np.int64) * available // count * tokens.context
    else:
        starts = np.arange(micro_batch, dtype=np.int64) * (tokens.starts - 1) // max(1, micro_batch - 1)
    return EvaluationWindows(tokens, starts, micro_batch)


def _generator(seed: int, stream: int, batch: int, sequence: int) -> np.random.Philox:
    """The counter-based generator of one sequence; its low counter word is left to count its own draws."""
    return np.random.Philox(
        counter=np.array([0, sequence, batch, 0], np.uint64), key=np.array([seed, stream], np.uint64)
    )


def _require_division(sequences: int, micro_batch: int) -> None:
    if micro_batch < 1 or sequences < 1 or sequences % micro_batch:
        raise ValueError(f"micro-batches of {micro_batch} sequences do not divide {sequences} sequences")


def _require_buffers(micro: int, count: int, rows: int, ids: TokenIds, targets: TokenIds) -> None:
    if not 0 <= micro < count:
        raise ValueError(f"a batch has the micro-batches 0 to {count - 1}, got {micro}")
    for name, buffer in (("ids", ids), ("targets", targets)):
        if buffer.shape != (rows,) or buffer.dtype != np.int32:
            raise ValueError(f"{name} needs int32 ({rows},), got {buffer.dtype} {buffer.shape}")
