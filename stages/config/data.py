"""The settings of the text and its tokens, `data.*`."""

import enum

from threadloom.stages.config.section import Section


class TokenizerKind(enum.Enum):
    """The tokenizers; see `stages.data.tokenizer_registry`."""

    CHARACTERS = "characters"
    """One token per character, of the most frequent characters."""
    BYTES = "bytes"
    """One token per byte of UTF-8: a vocabulary of 256 for any text."""
    WORDS = "words"
    """The most frequent words of the text, up to `model.vocab_size`, which must be set; the others become `<unk>`."""
    BPE = "bpe"
    """Byte pairs, trained on the text up to `model.vocab_size`, which must be set."""
    PRETRAINED = "pretrained"
    """An existing tokenizer, that of `data.tokenizer_path`."""


class SpecialTokens(enum.Enum):
    """The treatment of special tokens, such as <|endoftext|>, that occur in a text."""

    TEXT = "text"
    """They are encoded as any other text, which cannot contain the end of a text, of a turn or of an instruction."""
    TOKENS = "tokens"
    """Each is one token, for texts that were written with them, such as documents with <|endoftext|> in between."""


class TokenOrder(enum.Enum):
    """The orders of the vocabulary in which the rows of the embedding lie in memory; see `stages.data.token_order`."""

    ID = "id"
    """That of the tokenizer."""
    FREQUENCY = "frequency"
    """The most frequent token of the training split first; of equally frequent ones, that with the smaller id."""
    ULAM = "ulam"
    """By the ring of the Ulam spiral on which a token lies, the most frequent one in its centre: equal to `frequency`,
    since the rings follow each other on the spiral."""
    ULAM_MANHATTAN = "ulam_manhattan"
    """By |x| + |y| of its place on that spiral, which is another order."""


class Digits(enum.Enum):
    """The tokens of the digits of numbers; see `stages.data.abacus_tokenizer`."""

    PLAIN = "plain"
    """Those of the tokenizer."""
    ABACUS = "abacus"
    """One for each digit at each place of its number, as the rods of an abacus."""


class Packing(enum.Enum):
    """The sequences of T + 1 tokens that are cut from a token file; see `stages.data.packing`."""

    WINDOWS = "windows"
    """Windows of the running text, which may begin and end within a document."""
    DOCUMENTS = "documents"
    """Whole documents, as many as fit; those that are longer than a sequence are split."""


class Borders(enum.Enum):
    """The treatment of borders between the documents of a sequence."""

    IGNORED = "ignored"
    """A document sees those before it in its sequence."""
    RESET = "reset"
    """No attention across borders, and positions count from 0 in each document."""


class Shuffle(enum.Enum):
    """The orders in which training sequences are taken; see `stages.data.batches`."""

    DRAWN = "drawn"
    """Each at random from all of the training split, independent of the others."""
    EPOCHS = "epochs"
    """All sequences of the training split in random order, then all of them in another order, and so on."""


class InvalidRecords(enum.Enum):
    """The treatment of records of a text that no document can be made of, such as a line that is not JSON."""

    REFUSE = "refuse"
    """The text is refused, with the place of the first of them."""
    SKIP = "skip"
    """They are left out and counted, and the first reasons reported."""


class ConversationLayout(enum.Enum):
    """The layouts of records with conversations; see `stages.data.conversations`."""

    OPENAI = "openai"
    """`messages`, each with `role` and `content`."""
    SHAREGPT = "sharegpt"
    """`conversations`, whose messages have `from` and `value`."""
    ALPACA = "alpaca"
    """`instruction`, `input` and `output`."""
    COMPLETION = "completion"
    """`prompt` and `completion`."""


class DataConfig(Section, frozen=True, kw_only=True):
    """The text and its tokens."""

    text: tuple[str, ...] = ()
    """Files, directories and patterns such as corpus/**/*.jsonl.gz, or files of token ids (.bin, .npy). Empty: the
    source of Python's standard library."""
    prepared: str = ""
    """A folder of `threadloom prepare`, whose tokens are used; no text is read."""
    field: str = "text"
    """The field with the text, in JSON Lines, Parquet and Arrow; dots separate the names of nested fields."""
    invalid: InvalidRecords = InvalidRecords.REFUSE
    """Treatment of records that are damaged, or that have no text."""
    mixture: tuple[float, ...] = ()
    """A weight for each entry of `text`, which is then a source of its own: each training sequence is drawn from a
    source with the probability of its weight divided by their sum. Empty: all entries are one text."""
    validation_text: tuple[str, ...] = ()
    """Files, directories and patterns of the validation text. Empty: the part of the text after `train_fraction` is
    held out."""
    tokenizer: TokenizerKind = TokenizerKind.CHARACTERS
    """The tokenizer of the text."""
    tokenizer_path: str = ""
    """With `tokenizer=pretrained`: a tokenizer.json in Hugging Face's format, a vocab.json of GPT-2 or Qwen2 with its
    merges.txt beside it, or the folder of a model with one of them."""
    special_tokens: SpecialTokens = SpecialTokens.TEXT
    """Treatment of special tokens in the text, with a tokenizer that has some: words, BPE, pretrained."""
    conversations: ConversationLayout | None = None
    """Layout of records with conversations; null: recognised from the keys of each record."""
    chat_template: str = ""
    """The template that writes conversations as text: a file, or a built-in one (`chatml`, `plain`). Empty: that of the
    tokenizer, or a built-in one if it has none."""
    alphabet: int = 256
    """Maximum number of characters of a character tokenizer; U+FFFD replaces the others."""
    train_fraction: float = 0.9
    """Fraction of the text, or of each source of a mixture, from its start, for training; the rest is for validation.
    Of documents, whole ones are held out. Without effect if there is a `validation_text`."""
    token_order: TokenOrder = TokenOrder.ID
    """Order of the vocabulary in memory, by the counts of the training split. Files of models are always in that of
    the tokenizer."""
    digits: Digits = Digits.PLAIN
    """Tokens of the digits 0 to 9; `abacus` with a tokenizer of characters or bytes."""
    digit_places: int = 40
    """With `digits=abacus`: places that have tokens of their own; digits further right are plain."""
    digit_offset: int = 0
    """With `digits=abacus`: largest number that is added to the places of a training sequence, chosen at random for
    each sequence, so that places beyond the longest number of the text are trained too."""
    shuffle: Shuffle = Shuffle.DRAWN
    """Order of the training sequences; with `epochs` none is repeated before all others have been used, of a mixture
    before all others of its source."""
    packing: Packing = Packing.WINDOWS
    """Sequences for training and evaluation."""
    borders: Borders = Borders.IGNORED
    """Treatment of borders between the documents of a sequence."""

    @property
    def bordered(self) -> bool:
        """True if there is no attention across borders, which micro-batches must therefore have."""
        return self.borders is Borders.RESET
