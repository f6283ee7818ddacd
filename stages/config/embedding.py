"""The settings of the token embedding: tensors that are trained instead of it, from which it is computed."""

import enum
from math import e, frexp, gcd, log2, pi, sqrt

from threadloom.stages.config.errors import ConfigError
from threadloom.stages.config.section import Section
from threadloom.stages.models import Geometry, ResidueSizes, Shape

INITIAL_DEVIATION = 0.02
"""Standard deviation of a GPT-2's random token embedding."""
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


class EmbeddingLattice(enum.Enum):
    """The lattice to whose points every block of a row of the embedding is rounded; see `stages.embedding.lattice`."""

    NONE = "none"
    """Rows are real numbers."""
    Z = "z"
    """Integers, a number at a time."""
    FCC = "fcc"
    """The face-centred cubic lattice D3, blocks of 3: each point has 12 neighbours."""
    D4 = "d4"
    """Blocks of 4: 24 neighbours."""
    E8 = "e8"
    """Blocks of 8: 240 neighbours."""

    @property
    def spacing(self) -> float:
        """The volume of a cell to the power 1 / dimension: the side of a cube as large as a cell."""
        return {EmbeddingLattice.FCC: 2 ** (1 / 3), EmbeddingLattice.D4: 2 ** (1 / 4)}.get(self, 1.0)


class EmbeddingBasis(enum.Enum):
    """The initial factors of an embedding of low rank, W = A P, with the deviation of GPT-2's."""

    RANDOM = "random"
    """A is random, and the rows of P are orthonormal and random."""
    PCA = "pca"
    """A has the principal components of the tokens' neighbours in the training split; P is as in `random`."""
    LLL = "lll"
    """P has the short vectors of a lattice, which the covariance of an embedding of all principal components defines,
    and A is nearest to that embedding."""


RANKS_PER_CHANNEL = 4
"""The ranks of all bands together are at most this times the channels: their inner products lie in scratch of the MLP.
"""


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

    lattice: EmbeddingLattice = EmbeddingLattice.NONE
    """The lattice of the embedding, which is trained with the gradient of the rounded one."""
    lattice_bits: float = 4.0
    """With a lattice whose scale is 0: entropy in bits per weight that normal numbers of the initial deviation have."""
    lattice_scale: float = 0.0
    """With a lattice: power of two that multiplies its points; 0: from `lattice_bits`."""
    rank: int = 0
    """Rank of the embedding as a product A P of a row for each token (V, rank) and a basis (rank, C). 0: full rank."""
    alpha: float = 0.0
    """With `rank`: the ranks of up to four bands of the vocabulary are in proportion to this power of their tokens'
    frequency, and they have as many parameters as `rank` for all. Needs `data.token_order=frequency`. A started run
    has them as `bands`."""
    bands: tuple[tuple[int, int], ...] = ()
    """Instead of `rank`: [tokens, rank] of parts of the vocabulary, from its most frequent token on. The last one may
    have 0 tokens: all others. `model.channels` is the full rank. Needs `data.token_order=frequency`."""
    basis: EmbeddingBasis = EmbeddingBasis.RANDOM
    """With `rank` or `bands`: the initial factors."""

    @property
    def banded(self) -> bool:
        """True if the embedding is a product of low rank."""
        return bool(self.rank or self.bands)

    @property
    def has_residues(self) -> bool:
        """True if the kernels read the factors of residues; on a lattice they read the rounded sums."""
        return self.layout is EmbeddingLayout.RESIDUES and self.lattice is EmbeddingLattice.NONE

    @property
    def has_own_kernels(self) -> bool:
        """True if the output projection has other kernels than that of a plain embedding."""
        return self.banded or self.has_residues

    @property
    def tiny(self) -> "EmbeddingConfig":
        """Settings for a vocabulary of three tokens and four channels or more that take the same kernels."""
        if self.banded:
            return EmbeddingConfig(rank=3)
        return EmbeddingConfig(layout=self.layout, moduli=(3,)) if self.has_residues else EmbeddingConfig()

    @property
    def residues(self) -> ResidueSizes | None:
        """The rows of an embedding of residues whose factors the kernels read."""
        return ResidueSizes(self.moduli, self.own_rows) if self.has_residues else None

    @property
    def derived(self) -> bool:
        """True if the embedding is computed from other tensors."""
        return self.layout is not EmbeddingLayout.PLAIN or self.lattice is not EmbeddingLattice.NONE or self.banded

    @property
    def setting(self) -> str:
        """The settings that are not those of a plain embedding, such as ``embedding.layout=primes``."""
        layout = "" if self.layout is EmbeddingLayout.PLAIN else f"embedding.layout={self.layout.value}"
        lattice = "" if self.lattice is EmbeddingLattice.NONE else f"embedding.lattice={self.lattice.value}"
        bands = ",".join(f"[{tokens},{rank}]" for tokens, rank in self.bands)
        low = (f"embedding.rank={self.rank}" if self.rank else "", f"embedding.bands=[{bands}]" if bands else "")
        return " ".join(filter(None, (layout, lattice, *low)))

    @property
    def scale(self) -> float:
        """The scale of the lattice: the power of two next to the one that has `lattice_bits`.

        A normal distribution of deviation σ has ``log2(σ √(2πe) / cell)`` bits in cells of that side.
        """
        if self.lattice_scale:
            return self.lattice_scale
        cell = INITIAL_DEVIATION * sqrt(2 * pi * e) / 2.0**self.lattice_bits
        return float(2.0 ** round(log2(cell / self.lattice.spacing)))

    def check_scale(self) -> None:
        """Raise ConfigError unless the scale is a power of two."""
        if self.lattice_scale and frexp(self.lattice_scale)[0] != 0.5:
            raise ConfigError(
                "embedding.lattice_scale",
                expected="a power of two, so that float32 holds the points exactly",
                got=f"{self.lattice_scale:g}",
                hint="leave it out, or set one such as 0.00390625 (2^-8)",
            )

    def bands_in(self, vocabulary: int) -> tuple[tuple[int, int], ...]:
        """Return (tokens, rank) of the bands of a vocabulary; the last one has all tokens from its first one on."""
        if self.rank:
            return ((vocabulary, self.rank),)
        found, first = [], 0
        for number, (tokens, rank) in enumerate(self.bands):
            last = vocabulary if number == len(self.bands) - 1 else min(first + tokens, vocabulary)
            if last > first:
                found.append((last - first, rank))
            first = last
        return tuple(found)

    def require_bands(self, vocabulary: int) -> None:
        """Raise ConfigError unless the bands have the tokens of a vocabulary."""
        first = sum(tokens for tokens, _ in self.bands[:-1])
        if self.bands and (first >= vocabulary or self.bands[-1][0] not in (0, vocabulary - first)):
            raise ConfigError(
                "embedding.bands",
                expected=f"the {vocabulary:,} tokens of the vocabulary",
                got=f"{sum(tokens for tokens, _ in self.bands):,} in {len(self.bands)} bands",
                hint="give the last band 0 tokens, which stands for all others, and the bands before it fewer than all",
            )

    def factors(self, geometry: Geometry) -> tuple[tuple[str, Shape], ...]:
        """Return names and shapes of the tensors that are trained instead of the embedding; empty if itself is.

        Raises ConfigError for a model or for values that the layout does not fit.
        """
        if not self.derived:
            return ()
        self.check_scale()
        if geometry.architecture != "gpt2":
            raise ConfigError(
                self.key,
                expected="a plain embedding for a model of another architecture than gpt2",
                got=self.setting,
                hint="leave embedding.* out, or set model.architecture=gpt2",
            )
        if self.banded:
            return self._band_factors(geometry)
        return (("wte_factors", (self._features(geometry.vocabulary), geometry.channels)),)

    @property
    def key(self) -> str:
        """The setting by which the embedding is computed from other tensors; the first one of several."""
        return self.setting.split("=")[0]

    def _band_factors(self, geometry: Geometry) -> tuple[tuple[str, Shape], ...]:
        """Return the factors of an embedding of low rank, flat; raises ConfigError for ranks that it cannot have."""
        bands, channels = self.bands_in(geometry.vocabulary), geometry.channels
        ranks = [self.rank] if self.rank else [rank for _, rank in self.bands]
        limit = RANKS_PER_CHANNEL * channels
        if not (min(ranks) > 0 and max(ranks) <= channels and min(ranks) < channels and sum(ranks) <= limit):
            raise ConfigError(
                self.key,
                expected=f"ranks from 1 to the {channels} channels, one of them smaller, and together at most {limit}",
                got=self.setting,
                hint=f"start with a quarter of the channels: embedding.rank={max(channels // 4, 1)}",
            )
        rows = sum(tokens * rank for tokens, rank in bands)
        bases = sum(rank * channels for _, rank in bands if rank < channels)
        return ("wte_rows", (rows,)), ("wte_bases", (bases,))

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
