"""The word tokenizer: the most frequent words of a text, and one token for all others.

A word is a run of letters, of digits or of other signs, with the space before it, as in GPT-2's tokenizer; white space
that no word takes is a token too. Words of more than `WORD_CHARACTERS` characters are cut. `decode` returns the very
text, except that each unknown word is `<unk>`. It is saved as Hugging Face's tokenizer.json.
"""

from typing import ClassVar, Self

from threadloom.stages.config import TokenizerKind
from threadloom.stages.data.bpe_training import END_OF_TEXT, WORD_CHARACTERS, limit_library_threads
from threadloom.stages.data.chunked_text import ChunkedText, reported
from threadloom.stages.data.text_splitting import Splitter
from threadloom.stages.data.trained_tokenizer import TrainedTokenizer

UNKNOWN = "<unk>"
"""Special token of all words that are not in the vocabulary."""

_N = WORD_CHARACTERS
_PATTERN = (
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{{L}}\p{{M}}]{{1,{_N}}}| ?\p{{N}}{{1,{_N}}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]{{1,{_N}}}"
    rf"|\s{{1,{_N}}}(?!\S)|\s{{1,{_N}}}"
)
"""GPT-2's words, except that combining marks belong to letters."""


class WordTokenizer(TrainedTokenizer):
    """The words of the text of a run."""

    kind: ClassVar[TokenizerKind] = TokenizerKind.WORDS
    min_vocabulary: ClassVar[int] = 3  # the unknown word, the end of text, and one word

    @classmethod
    def train(cls, text: ChunkedText, limit: int) -> Self:
        """Return the tokenizer of the most frequent words of a text; of equally frequent ones, the first by code point.

        It has at most `limit` tokens, the unknown word and the end of text among them.
        """
        limit_library_threads()
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        words = pre_tokenizers.Split(tokenizers.Regex(_PATTERN), "isolated")
        tokenizer.pre_tokenizer, tokenizer.decoder = words, decoders.Fuse()
        special = [UNKNOWN, END_OF_TEXT]
        trainer = trainers.WordLevelTrainer(
            vocab_size=limit, min_frequency=1, show_progress=False, special_tokens=special
        )
        chunks = reported(text.chunks(), text.characters, "counting the words of the text")
        tokenizer.train_from_iterator(Splitter(words).chunks(chunks), trainer)
        return cls(tokenizer.to_str(pretty=True))
