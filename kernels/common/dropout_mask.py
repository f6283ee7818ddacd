"""The elements that dropout drops: a generator of random numbers that is a function of counters.

The mask is a function of the key of the micro-batch, the array, and the number of the element. So the backward pass
computes it again, and it depends neither on threads nor on the order of the micro-batches. The generator is two rounds
of the finaliser of MurmurHash3 (Appleby, 2011), each between additions of 32 bits of the key.
"""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.common.tensors import Dropout
from threadloom.kernels.compiling import jit_inline_body

_LOW = np.uint64(0xFFFFFFFF)

_ZERO = np.float32(0.0)


@jit_inline_body
def _multiply(a: np.uint32, b: np.uint32) -> np.uint32:
    return np.uint32((np.uint64(a) * np.uint64(b)) & _LOW)


@jit_inline_body
def _mix(h: np.uint32) -> np.uint32:
    """Return the finaliser of MurmurHash3's 32-bit variant."""
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    h = _multiply(h, np.uint32(0x85EBCA6B))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(13)))
    h = _multiply(h, np.uint32(0xC2B2AE35))
    return np.uint32(h ^ np.uint32(h >> np.uint32(16)))


@jit_inline_body
def _add(a: np.uint32, b: np.uint32) -> np.uint32:
    return np.uint32((np.uint64(a) + np.uint64(b)) & _LOW)


@jit_inline_body
def _matrix_key(dropout: Dropout) -> np.uint64:
    """Return 64 bits that no other matrix of the micro-batch has."""
    low = _mix(np.uint32((dropout.key[0] ^ np.uint64(dropout.matrix)) & _LOW))
    high = _mix(_add(np.uint32(dropout.key[0] >> np.uint64(32)), low))
    return np.uint64(np.uint64(high) << np.uint64(32)) | np.uint64(low)


class Mask(NamedTuple):
    """Numbers from which the mask of a matrix follows."""

    low: np.uint32  # halves of the matrix's key
    high: np.uint32
    threshold: np.uint32  # elements with smaller random numbers are dropped
    factor: np.float32  # of the others


@jit_inline_body
def random_bits(number: int, mask: Mask) -> np.uint32:
    """Return 32 random bits of an element."""
    counter = np.uint32(np.uint64(number) & _LOW)
    return _mix(_add(_mix(_add(counter, mask.low)), mask.high))


@jit_inline_body
def mask_of(dropout: Dropout) -> Mask:
    """Return the numbers of an array whose elements are dropped."""
    key, threshold = _matrix_key(dropout), np.uint32(dropout.probability * 4294967296.0)
    low, high = np.uint32(key & _LOW), np.uint32(key >> np.uint64(32))
    return Mask(low, high, threshold, np.float32(1.0 / (1.0 - dropout.probability)))


@jit_inline_body
def masked(value: np.float32, number: int, mask: Mask) -> np.float32:
    """Return element `number`, dropped or scaled."""
    return value * mask.factor if random_bits(number, mask) >= mask.threshold else _ZERO
