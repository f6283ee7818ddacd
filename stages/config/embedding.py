"""The settings of the token embedding: tensors that are trained instead of it, from which it is computed."""

import enum
from math import gcd

from threadloom.stages.config.errors import ConfigError
from threadloom.stages.config.section import Section
from threadloom.stages.models import Geometry, Shape

BYTES = 256
"""Number of pieces of `embedding.layout=primes`: the values of a byte."""


DIGITS = 10


def most_places(vocabulary: int) -> int:
    """Return the largest number of places of digits that a vocabulary can have, with a token for each digit."""
    return vocabulary // DIGITS


class EmbeddingLayout(enum.Enum):
    """The layouts of the token embedding, W = M F with a fixed sparse M and trained F; see `stages.embedding`."""

    PLAIN = "plain"
    """W itself is trained."""
    IDENTITY = "identity"
    """M = I, which changes no bit."""
    PRIMES = "primes"
    """Each token has a row of its own, plus the rows of the bytes in it (its prime factors)."""
    CLOCK = "clock"
    """Numbers have, besides a row of their own, sines and cosines of several periods."""
    KISSING = "kissing"
    """Each token shares rows with the twelve tokens that are most alike in their neighbours in the text."""
    ABACUS = "abacus"
    """A digit at a place (`data.digits=abacus`) is the sum of a row of the digit and one of the place."""
    RESIDUES = "residues"
    """A token is the sum of one row for each of its residues modulo coprime numbers."""


class EmbeddingConfig(Section, frozen=True, kw_only=True):
    """The token embedding of a GPT-2, whose output projection is tied to it."""

    layout: EmbeddingLayout = EmbeddingLayout.PLAIN
    """The tensors that are trained instead of the embedding, which is computed from them after every update."""
    share: float = 0.5
    """With `kissing`: weight λ of the neighbours, whose rows count λ / (1 + λ) together."""
    periods: tuple[int, ...] = (10, 100, 1000)
    """With `clock`: periods of the sines and cosines, in units of the numbers."""
    moduli: tuple[int, ...] = ()
    """With `residues`: numbers without common factors, whose product is at least the number of tokens with residues."""
    own_rows: int = 0
    """With `residues`: number of tokens, the first ones in `data.token_order`, that have rows of their own."""

    @property
    def derived(self) -> bool:
        """True if the embedding is computed from other tensors."""
        return self.layout is not EmbeddingLayout.PLAIN

    def factors(self, geometry: Geometry) -> tuple[tuple[str, Shape], ...]:
        """Return names and shapes of the tensors that are trained instead of the embedding; empty if itself is.

        Raises ConfigError for a model or for values that the layout does not fit.
        """
        if not self.derived:
            return ()
        if geometry.architecture != "gpt2":
            raise ConfigError(
                "embedding.layout",
                expected="plain for a model of another architecture than gpt2",
                got=self.layout.value,
                hint="set embedding.layout=plain, or model.architecture=gpt2",
            )
        return (("wte_factors", (self._features(geometry.vocabulary), geometry.channels)),)

    def _features(self, vocabulary: int) -> int:
        """Return the number of rows of F."""
        match self.layout:
            case EmbeddingLayout.PRIMES:
                return vocabulary + BYTES
            case EmbeddingLayout.CLOCK:
                return vocabulary + 2 * len(self.periods)
            case EmbeddingLayout.ABACUS:
                return vocabulary + DIGITS + most_places(vocabulary)
            case EmbeddingLayout.RESIDUES:
                self._check_moduli(max(vocabulary - self.own_rows, 1))
                return min(self.own_rows, vocabulary) + sum(self.moduli)
            case _:
                return vocabulary

    def _check_moduli(self, tokens: int) -> None:
        """Raise ConfigError unless the residues tell all `tokens` apart."""
        product, coprime = 1, bool(self.moduli)
        for modulus in self.moduli:
            coprime = coprime and modulus > 0 and gcd(product, modulus) == 1
            product *= modulus
        if not coprime or product < tokens:
            raise ConfigError(
                "embedding.moduli",
                expected=f"numbers without common factors whose product is at least {tokens:,}",
                got=", ".join(map(str, self.moduli)) or "none",
                hint="set two primes next to the square root of the vocabulary, such as embedding.moduli=[101,103]",
            )
