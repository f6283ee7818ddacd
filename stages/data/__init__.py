"""From text to micro-batches: texts, tokenizers and their registry, token files, datasets, batch sources.

May import: all above.
"""

from threadloom.stages.data.batches import (
    BatchSource,
    EvaluationWindows,
    RandomTokens,
    TokenBatches,
    TokenIds,
    evaluation_batches,
)
from threadloom.stages.data.dataset import Dataset, prepare, require_same_text
from threadloom.stages.data.text import Text, absolute_text, read_text
from threadloom.stages.data.text_files import LeftOut
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_record import recorded_outputs, write_sources
from threadloom.stages.data.token_file import DataError, TokenFile, token_type
from threadloom.stages.data.tokenizer import Tokenizer, TokenizerError
from threadloom.stages.data.tokenizer_registry import load_tokenizer, train_tokenizer

__all__ = [
    "BatchSource",
    "DataError",
    "Dataset",
    "EvaluationWindows",
    "LeftOut",
    "RandomTokens",
    "Text",
    "TextError",
    "TokenBatches",
    "TokenFile",
    "TokenIds",
    "Tokenizer",
    "TokenizerError",
    "absolute_text",
    "evaluation_batches",
    "load_tokenizer",
    "prepare",
    "read_text",
    "recorded_outputs",
    "require_same_text",
    "token_type",
    "train_tokenizer",
    "write_sources",
]
