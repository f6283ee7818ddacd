"""From text to micro-batches: texts, tokenizers and their registry, token files, datasets, batch sources.

May import: all above.
"""

from threadloom.stages.data.abacus_tokenizer import AbacusTokenizer as AbacusTokenizer, digit_table as digit_table
from threadloom.stages.data.batches import (
    BatchSource as BatchSource,
    EvaluationWindows as EvaluationWindows,
    RandomTokens as RandomTokens,
    TokenBatches as TokenBatches,
    TokenIds as TokenIds,
    evaluation_batches as evaluation_batches,
)
from threadloom.stages.data.bordered_tokens import BorderedTokenFile as BorderedTokenFile
from threadloom.stages.data.borders import (
    BorderedSource as BorderedSource,
    divide_sequences as divide_sequences,
    fill_starts as fill_starts,
)
from threadloom.stages.data.bpe_training import (
    WORD_PATTERN as WORD_PATTERN,
    train_byte_pairs as train_byte_pairs,
)
from threadloom.stages.data.choice import (
    EvaluationChoice as EvaluationChoice,
    sequences_of as sequences_of,
    training_batches as training_batches,
)
from threadloom.stages.data.chunked_text import (
    ChunkedText as ChunkedText,
    StringText as StringText,
    reported as reported,
)
from threadloom.stages.data.corpus import (
    Corpus as Corpus,
    read_corpus as read_corpus,
    with_absolute_paths as with_absolute_paths,
)
from threadloom.stages.data.dataset import (
    Dataset as Dataset,
    open_prepared as open_prepared,
    prepare as prepare,
    prepared_mixture as prepared_mixture,
    prepared_order as prepared_order,
    prepared_special_tokens as prepared_special_tokens,
    require_same_text as require_same_text,
)
from threadloom.stages.data.digit_places import DigitTable as DigitTable, PlaceOffsets as PlaceOffsets
from threadloom.stages.data.documents import (
    Document as Document,
    EncodedDocument as EncodedDocument,
    Origin as Origin,
    Span as Span,
)
from threadloom.stages.data.encoding.lengths import (
    Repeats as Repeats,
    length_percentiles as length_percentiles,
    repeated_documents as repeated_documents,
)
from threadloom.stages.data.mixture import Mixture as Mixture
from threadloom.stages.data.packed_sequences import PackedSequences as PackedSequences
from threadloom.stages.data.prepared_folder import (
    prepared_vocabulary as prepared_vocabulary,
    read_settings as read_settings,
    require_tokenizer_of as require_tokenizer_of,
    write_settings as write_settings,
)
from threadloom.stages.data.sequence_figures import SequenceFigures as SequenceFigures
from threadloom.stages.data.sources.json_lines import json_records as json_records
from threadloom.stages.data.sources.records import RecordError as RecordError
from threadloom.stages.data.sources.registry import Reading as Reading, reading_of as reading_of
from threadloom.stages.data.standard_input import (
    keep_standard_input as keep_standard_input,
    standard_input as standard_input,
)
from threadloom.stages.data.text import Text as Text
from threadloom.stages.data.text_files import LeftOut as LeftOut
from threadloom.stages.data.text_format import TextError as TextError
from threadloom.stages.data.text_paths import STANDARD_INPUT as STANDARD_INPUT, absolute_text as absolute_text
from threadloom.stages.data.text_reading import read_text as read_text
from threadloom.stages.data.text_record import recorded_outputs as recorded_outputs, write_sources as write_sources
from threadloom.stages.data.token_file import (
    IGNORED_TARGET as IGNORED_TARGET,
    DataError as DataError,
    IntegerAppender as IntegerAppender,
    TokenFile as TokenFile,
    token_type as token_type,
)
from threadloom.stages.data.token_order import ulam_point as ulam_point, vocabulary_order as vocabulary_order
from threadloom.stages.data.tokenizer import Tokenizer as Tokenizer, TokenizerError as TokenizerError
from threadloom.stages.data.tokenizer_files import (
    MODEL_CONFIG_FILE as MODEL_CONFIG_FILE,
    companion_files as companion_files,
    load_tokenizer as load_tokenizer,
)
from threadloom.stages.data.tokenizer_registry import (
    create_tokenizer as create_tokenizer,
    preparation_bytes as preparation_bytes,
)
from threadloom.stages.data.validation_sets import prepare_sets as prepare_sets
from threadloom.stages.data.vocabulary_files import (
    TOKENIZER_CONFIG_FILE as TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE as TOKENIZER_FILE,
)
