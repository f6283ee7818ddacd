"""Prime factors: a token shares a row with every token that contains one of its bytes.

Each byte is a prime number, the more frequent ones the smaller, and a token is the product of its bytes: n = Π p^e. For
such numbers ``ln gcd(a, b) = Σ_p min(e_p(a), e_p(b)) ln p``, a dot product of sparse vectors: tokens are similar in
proportion to the bytes that they share. With one prime for each token, as the plans had it, all of them would be
coprime. The rows of the factors are what is learned; a number itself has no gradient.
"""

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import BYTES
from threadloom.stages.embedding.sparse import SparseEmbedding, SparseMatrix, start_with_embedding
from threadloom.stages.embedding.vocabulary import VocabularyFacts


def prime_embedding(facts: VocabularyFacts) -> SparseEmbedding:
    """Return W = U + M' F': own rows U and, in proportion to its exponents e / Σ e, the rows of a token's bytes."""
    rows, pieces, exponents = byte_exponents(facts)
    totals = np.bincount(rows, weights=exponents, minlength=facts.size)
    own = np.arange(facts.size)
    matrix = SparseMatrix.of(
        (facts.size, facts.size + BYTES),
        np.concatenate([own, rows]),
        np.concatenate([own, facts.size + pieces]),
        np.concatenate([np.ones(facts.size), exponents / totals[rows]]),
    )
    return SparseEmbedding(matrix, start_with_embedding)


def byte_exponents(facts: VocabularyFacts) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return (row, byte, exponent) of each different byte of each token; a row without a text has none."""
    found = [
        (row, byte, count)
        for row, text in enumerate(facts.texts)
        for byte, count in enumerate(np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=BYTES))
        if count
    ]
    rows, pieces, counts = np.array(found, np.int64).reshape(-1, 3).T
    return rows, pieces, counts.astype(np.float64)


def token_numbers(facts: VocabularyFacts) -> list[int]:
    """Return the number of each row: the product of the primes of its bytes; 1 for a row without a text."""
    rows, pieces, exponents = byte_exponents(facts)
    totals = np.bincount(pieces, weights=exponents, minlength=BYTES)
    ranks = np.empty(BYTES, np.int64)
    ranks[np.argsort(-totals, kind="stable")] = np.arange(BYTES)
    primes, numbers = first_primes(BYTES), [1] * facts.size
    for row, piece, exponent in zip(rows.tolist(), pieces.tolist(), exponents.tolist(), strict=True):
        numbers[row] *= int(primes[ranks[piece]]) ** int(exponent)
    return numbers


def first_primes(count: int) -> NDArray[np.int64]:
    """Return the first prime numbers, by the sieve of Eratosthenes."""
    limit = max(int(count * (np.log(count + 2) + np.log(np.log(count + 2) + 1) + 1)), 16)  # above the last of them
    sieve = np.ones(limit, bool)
    sieve[:2] = False
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = False
    return np.flatnonzero(sieve)[:count]
