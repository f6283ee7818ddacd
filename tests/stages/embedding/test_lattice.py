"""Embeddings on a lattice: points next to the factors, gradients passed through, scales, refusals."""

import numpy as np
import pytest

from tests.reference import lattices
from tests.stages.support import TINY
from threadloom.kernels.lattice import BLOCK, Lattice
from threadloom.stages.config import ConfigError, EmbeddingConfig, EmbeddingLattice, EmbeddingLayout
from threadloom.stages.embedding import VocabularyFacts, derived_embedding
from threadloom.stages.lattice import shortest_vector
from threadloom.stages.resolve import apply_overrides, validate

ROWS, COLUMNS = 9, 19
LATTICES = [lattice for lattice in EmbeddingLattice if lattice is not EmbeddingLattice.NONE]
each_lattice = pytest.mark.parametrize("lattice", LATTICES)


@each_lattice
def test_rows_are_the_points_next_to_the_factors(lattice: EmbeddingLattice) -> None:
    """Each block of W is a point whose Voronoi cell has that of F; a remainder is rounded to integers."""
    found = derived_embedding(EmbeddingConfig(lattice=lattice, lattice_scale=2.0**-6), VocabularyFacts(ROWS))
    assert found is not None
    rng = np.random.default_rng(0)
    start = rng.standard_normal((ROWS, COLUMNS), np.float32)
    factors = {"wte_factors": np.full((ROWS, COLUMNS), np.nan, np.float32)}
    found.start(start, factors, 0)
    np.testing.assert_array_equal(factors["wte_factors"], start)
    embedding = np.full((ROWS, COLUMNS), np.nan, np.float32)
    found.derive(factors, embedding)
    size = BLOCK[Lattice[lattice.name]]
    whole = COLUMNS // size * size
    vectors = lattices.roots(lattice.name)
    points = embedding[:, :whole].reshape(-1, size) * 64.0
    away = start[:, :whole].reshape(-1, size) * 64.0 - points
    assert (points * 2 == np.rint(points * 2)).all()
    assert (away.astype(np.float64) @ vectors.T <= 0.5 * (vectors**2).sum(axis=1) + 1e-9).all()
    np.testing.assert_array_equal(embedding[:, whole:], np.rint(start[:, whole:] * 64) / 64)
    gradient = rng.standard_normal((ROWS, COLUMNS), np.float32)
    gradients = {"wte_factors": np.full((ROWS, COLUMNS), np.nan, np.float32)}
    found.fold(gradient, {}, gradients)
    np.testing.assert_array_equal(gradients["wte_factors"], gradient)


def test_a_layout_is_rounded_and_digests_differ() -> None:
    facts = VocabularyFacts(3, ("a", "b", "ab"))
    primes = EmbeddingConfig(layout=EmbeddingLayout.PRIMES)
    rounded = EmbeddingConfig(layout=EmbeddingLayout.PRIMES, lattice=EmbeddingLattice.Z, lattice_scale=0.5)
    exact, found = derived_embedding(primes, facts), derived_embedding(rounded, facts)
    assert exact is not None
    assert found is not None
    factors = {"wte_factors": np.random.default_rng(0).standard_normal((3 + 256, 5), np.float32)}
    of_exact, of_rounded = np.zeros((3, 5), np.float32), np.zeros((3, 5), np.float32)
    exact.derive(factors, of_exact)
    found.derive(factors, of_rounded)
    np.testing.assert_array_equal(of_rounded, np.rint(of_exact * 2) / 2)
    other = derived_embedding(EmbeddingConfig(lattice=EmbeddingLattice.Z, lattice_scale=0.5), facts)
    assert other is not None
    assert len({exact.digest, found.digest, other.digest}) == 3


@each_lattice
def test_the_open_scale_has_the_bits(lattice: EmbeddingLattice) -> None:
    """Cells have the volume of a cube with which a normal distribution has those bits, within half a bit."""
    basis = {"Z": np.eye(1), "FCC": np.array([[1, 1, 0], [1, -1, 0], [0, 1, -1]])}.get(lattice.name)
    if basis is not None:  # the spacing is that of a basis, whose shortest vector is a minimal one
        assert abs(np.linalg.det(basis)) ** (1 / len(basis)) == pytest.approx(lattice.spacing)
        shortest = (lattices.roots(lattice.name) ** 2).sum(axis=1).min()
        assert shortest_vector((basis @ basis.T).astype(float)).distance == pytest.approx(shortest)
    for bits in (2, 4, 7.5):
        scale = EmbeddingConfig(lattice=lattice, lattice_bits=bits).scale
        entropy = np.log2(0.02 * np.sqrt(2 * np.pi * np.e)) - np.log2(scale * lattice.spacing)
        assert abs(entropy - bits) <= 0.5
        assert np.frexp(scale)[0] == 0.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("embedding.lattice=e8", "embedding.lattice_scale=0.3"), "a power of two"),
        (("embedding.lattice=e8", "lora.rank=4"), "lora.rank"),
        (("embedding.lattice=leech",), "embedding.lattice"),
    ],
)
def test_refusals(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(apply_overrides(TINY, overrides))
