"""From text to micro-batches: texts, tokenizers, token files, datasets, batch sources.

May import: models, config, storage, machine, memory, resolve.
"""

from threadloom.stages.data.batches import (
    BatchSource,
    EvaluationWindows,
    RandomTokens,
    TokenIds,
    evaluation_batches,
    random_batches,
    training_batches,
)
from threadloom.stages.data.dataset import Dataset, prepare, require_same_text
from threadloom.stages.data.text import Text, read_text
from threadloom.stages.data.token_file import DataError, TokenFile, token_type
from threadloom.stages.data.tokenizer import Tokenizer, TokenizerError, load_tokenizer, train_tokenizer

__all__ = [
    "BatchSource",
    "DataError",
    "Dataset",
    "EvaluationWindows",
    "RandomTokens",
    "Text",
    "TokenFile",
    "TokenIds",
    "Tokenizer",
    "TokenizerError",
    "evaluation_batches",
    "load_tokenizer",
    "prepare",
    "random_batches",
    "read_text",
    "require_same_text",
    "token_type",
    "train_tokenizer",
    "training_batches",
]
