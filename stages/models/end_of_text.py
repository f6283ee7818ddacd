"""The token that begins and ends a text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EndOfText:
    """A special token of a tokenizer in Hugging Face's format."""

    id: int
    token: str
    """Its text, such as <|endoftext|>."""
