"""Token embeddings that are computed from other, trained tensors: the protocol, and the layouts.

May import: all above.
"""

from threadloom.stages.embedding.automatic_bands import bands_by_frequency as bands_by_frequency
from threadloom.stages.embedding.derived import DerivedEmbedding as DerivedEmbedding
from threadloom.stages.embedding.lattice import LatticeEmbedding as LatticeEmbedding
from threadloom.stages.embedding.primes import first_primes as first_primes
from threadloom.stages.embedding.registry import derived_embedding as derived_embedding
from threadloom.stages.embedding.sparse import SparseEmbedding as SparseEmbedding, SparseMatrix as SparseMatrix
from threadloom.stages.embedding.vocabulary import (
    VocabularyFacts as VocabularyFacts,
    vocabulary_facts as vocabulary_facts,
)
