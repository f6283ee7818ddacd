"""The rows of the crystalline table as data: the claim, its ceiling by arithmetic, the settings that are measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

BASELINE = "plain"
"""Name of the variant without any option, with which the others are compared."""


class Variant(NamedTuple):
    """Settings on top of a configuration."""

    name: str
    settings: tuple[str, ...] = ()
    ceiling: float | None = None
    """Largest factor of speed, if it is not that of the row, as of a model of other sizes."""


@dataclass(frozen=True)
class Row:
    """One promise, and the forms of it that are measured."""

    name: str
    claim: str
    """The promise as the plans state it."""
    factors: tuple[float, float] | None
    """The factors of speed that it promises, from the least to the most; None for a promise without a figure."""
    ceiling: Mapping[str, float]
    """Configuration → largest factor in tokens per second that the arithmetic of the best form permits."""
    variants: Mapping[str, tuple[Variant, ...]] = field(default_factory=dict)
    """Configuration → its variants."""

    def ceiling_of(self, config: str, variant: Variant) -> float:
        """Return the largest factor that arithmetic permits for a variant."""
        return variant.ceiling or self.ceiling[config]


CONFIGURATIONS: Mapping[str, tuple[str, ...]] = {
    "nanogpt-cpu": (),
    "small": ("steps=600", "schedule.warmup=100", "optimizer.lr=2e-3", "schedule.min_lr=2e-4", "evaluation.batches=50"),
}
"""Configuration → the settings of every variant: `small` is shortened, and its rate is raised for so few updates."""

FREQUENCY_ORDER = "data.token_order=frequency"

ROWS: tuple[Row, ...] = (
    Row(
        "LLL reduction of the embedding, 128 to 64",
        "2 to 4 times as fast",
        (2.0, 4.0),
        {"nanogpt-cpu": 1.00, "small": 1.83},
        {
            "nanogpt-cpu": (
                Variant("rank 64", ("embedding.rank=64",)),
                Variant("64 channels", ("model.channels=64",), 3.8),
            ),
            "small": (
                Variant("rank 64", ("embedding.rank=64",)),
                Variant("rank 64, PCA", ("embedding.rank=64", "embedding.basis=pca")),
                Variant("rank 128", ("embedding.rank=128",)),
            ),
        },
    ),
    Row(
        "prime and GCD similarity",
        "10 to 100 times as fast",
        (10.0, 100.0),
        {"nanogpt-cpu": 1.01, "small": 2.47},
        {
            "nanogpt-cpu": (
                Variant("prime factors", ("embedding.layout=primes",)),
                Variant("residues 8, 9", ("embedding.layout=residues", "embedding.moduli=[8,9]")),
            ),
            "small": (
                Variant("prime factors", ("embedding.layout=primes",)),
                Variant("residues 101, 103", ("embedding.layout=residues", "embedding.moduli=[101,103]")),
                Variant(
                    "2,000 rows, residues",
                    (
                        "embedding.layout=residues", "embedding.moduli=[89,97]", "embedding.own_rows=2000",
                        FREQUENCY_ORDER,
                    ),
                    ceiling=1.91,
                ),
            ),
        },
    ),
    Row(
        "Ulam-spiral token order",
        "20 to 50 % faster",
        (1.2, 1.5),
        {"nanogpt-cpu": 1.00, "small": 1.005},
        {
            "nanogpt-cpu": (Variant("Ulam order", ("data.token_order=ulam",)),),
            "small": (Variant("Ulam order", ("data.token_order=ulam",)),),
        },
    ),
    Row(
        "kissing-spheres layout",
        "better placed tokens, no figure",
        None,
        {"nanogpt-cpu": 1.00, "small": 1.00},
        {
            "nanogpt-cpu": (
                Variant("12 neighbours", ("embedding.layout=kissing",)),
                Variant("E8 lattice", ("embedding.lattice=e8",)),
                Variant("D4 lattice", ("embedding.lattice=d4",)),
                Variant("FCC lattice", ("embedding.lattice=fcc",)),
                Variant("integer lattice", ("embedding.lattice=z",)),
            ),
            "small": (
                Variant("12 neighbours", ("embedding.layout=kissing",)),
                Variant("E8 lattice", ("embedding.lattice=e8",)),
            ),
        },
    ),
    Row(
        "clock abacus",
        "no figure",
        None,
        {"nanogpt-cpu": 1.00, "small": 1.00},
        {
            "nanogpt-cpu": (Variant("clock features", ("embedding.layout=clock",)),),
            "small": (Variant("clock features", ("embedding.layout=clock",)),),
        },
    ),
    Row(
        "dynamic dimension",
        "no figure",
        None,
        {"nanogpt-cpu": 1.00, "small": 1.57},
        {
            "small": (
                Variant(
                    "bands 2,000 x 256, rest x 64",
                    ("embedding.bands=[[2000,256],[8000,64]]", FREQUENCY_ORDER),
                ),
                Variant(
                    "bands 2,000 x 64, rest x 112",
                    ("embedding.bands=[[2000,64],[8000,112]]", FREQUENCY_ORDER),
                ),
            ),
        },
    ),
)  # fmt: skip
"""Every row that changes a training. `threadloom grow`, `certify` and the arithmetic of digits are measured apart."""


def variants_of(config: str) -> Iterator[tuple[Row | None, Variant]]:
    """Yield the variants of a configuration with their rows: the baseline, which has no row, first."""
    yield None, Variant(BASELINE)
    for row in ROWS:
        for variant in row.variants.get(config, ()):
            yield row, variant
