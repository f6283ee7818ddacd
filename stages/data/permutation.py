"""Keyed permutations of 0 … n − 1, computed element by element without an index in memory.

A Feistel network on pairs of digits (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains"): x = left +
a · right with a · b ≥ n, where each round adds a hash of one digit to the other, modulo a or b. A round can be undone
whatever the hash is, so the network is a permutation of 0 … a · b − 1. Results of n and more are permuted again until
one is below n ("cycle walking"), which leaves a permutation of 0 … n − 1; since a · b − n < a, that is rare.

The hash is the finaliser of SplitMix64 (Steele et al., 2014). It shuffles, and protects nothing.
"""

import struct
from hashlib import shake_128
from math import isqrt

ROUNDS = 16
"""Rounds of the network. Half as many leave the 120 permutations of 5 elements measurably unequal in frequency."""
_WORD = (1 << 64) - 1


class KeyedPermutation:
    """A permutation of 0 … size − 1 that is a function of (seed, epoch)."""

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation has at least one element, got {size}")
        self.size = size
        self.left = isqrt(size - 1) + 1 if size > 1 else 1
        """Number of values of the first digit."""
        self.right = -(-size // self.left)
        """Number of values of the second digit."""
        key = f"threadloom shuffle {seed} {epoch}".encode()
        self.keys = struct.unpack(f"<{ROUNDS}Q", shake_128(key).digest(8 * ROUNDS))
        """Key of the hash of each round, 64 bits."""

    def __call__(self, index: int) -> int:
        """Return the image of `index`; both are from 0 to size − 1."""
        if not 0 <= index < self.size:
            raise ValueError(f"the elements are 0 to {self.size - 1}, got {index}")
        image = self._network(index)
        while image >= self.size:
            image = self._network(image)
        return image

    def _network(self, x: int) -> int:
        right, left = divmod(x, self.left)
        for even, odd in zip(self.keys[::2], self.keys[1::2], strict=True):
            left = (left + _hash(right + even)) % self.left
            right = (right + _hash(left + odd)) % self.right
        return left + self.left * right


def _hash(z: int) -> int:
    z &= _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _WORD
    return z ^ (z >> 31)
