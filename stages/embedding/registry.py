"""The choice of the embedding that a configuration asks for."""

from threadloom.kernels.lattice import Lattice
from threadloom.stages.config import EmbeddingConfig, EmbeddingLattice, EmbeddingLayout
from threadloom.stages.embedding.abacus import abacus_embedding
from threadloom.stages.embedding.bands import BandedEmbedding
from threadloom.stages.embedding.bases import start_of
from threadloom.stages.embedding.clock import clock_embedding
from threadloom.stages.embedding.derived import DerivedEmbedding
from threadloom.stages.embedding.kissing import kissing_embedding
from threadloom.stages.embedding.lattice import LatticeEmbedding
from threadloom.stages.embedding.primes import prime_embedding
from threadloom.stages.embedding.residues import residue_embedding
from threadloom.stages.embedding.sparse import SparseEmbedding, SparseMatrix, start_with_embedding
from threadloom.stages.embedding.vocabulary import VocabularyFacts


def derived_embedding(config: EmbeddingConfig, facts: VocabularyFacts) -> DerivedEmbedding | None:
    """Return the embedding of a configuration, None for one that is trained itself."""
    if config.banded:
        return BandedEmbedding(config.bands_in(facts.size), start_of(config.basis, facts))
    exact = _exact_embedding(config, facts)
    if config.lattice is EmbeddingLattice.NONE:
        return exact
    exact = exact or SparseEmbedding(SparseMatrix.identity(facts.size), start_with_embedding)
    return LatticeEmbedding(exact, Lattice[config.lattice.name], config.scale)


def _exact_embedding(config: EmbeddingConfig, facts: VocabularyFacts) -> DerivedEmbedding | None:
    match config.layout:
        case EmbeddingLayout.PLAIN:
            return None
        case EmbeddingLayout.IDENTITY:
            return SparseEmbedding(SparseMatrix.identity(facts.size), start_with_embedding)
        case EmbeddingLayout.PRIMES:
            return prime_embedding(facts)
        case EmbeddingLayout.CLOCK:
            return clock_embedding(facts, config.periods)
        case EmbeddingLayout.KISSING:
            return kissing_embedding(facts, config.share)
        case EmbeddingLayout.ABACUS:
            return abacus_embedding(facts)
        case EmbeddingLayout.RESIDUES:
            return residue_embedding(facts, config.moduli, config.own_rows)
