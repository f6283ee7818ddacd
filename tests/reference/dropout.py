"""The masks of dropout, by the description of the generator, and their use in a block (Srivastava et al., 2014).

The number of an element, and that of its array, are hashed with the key of the micro-batch by the finaliser of
MurmurHash3 (Appleby, 2011), twice each. NumPy's unsigned integers wrap around, as the description has it.
"""

import numpy as np
from numpy.typing import NDArray

from tests.reference.tensors import Array, Tensors
from tests.rounding_marks import multiple, stored, total

EMBEDDING, ATTENTION, RESIDUAL = 2**31, 2**30, 2**29
"""Numbers of arrays: the input embeddings, the probabilities of the first head, the first output of a block."""

Words = NDArray[np.uint32]


def finaliser(words: Words) -> Words:
    """Return the finaliser of MurmurHash3's 32-bit variant of each word."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))


def mask(probability: float, key: int, array: int, numbers: NDArray[np.int64]) -> Array:
    """Return the factors of the elements with these numbers, of an array of a micro-batch: 0, or 1 / (1 - p)."""
    low = finaliser(np.array([(key ^ array) % 2**32], np.uint32))
    high = finaliser(np.array([key >> 32], np.uint32) + low)
    random = finaliser(finaliser(numbers.astype(np.uint32) + low) + high)
    return np.where(random >= int(probability * 2**32), np.float64(np.float32(1 / (1 - probability))), 0.0)


def residual_masks(probability: float, key: int, layers: int, shape: tuple[int, int, int]) -> Array:
    """Return the masks of the outputs of attention and of MLP, (L, 2, B, T, C), for outputs of a shape (B, T, C)."""
    numbers = np.arange(np.prod(shape)).reshape(shape)
    outputs = [mask(probability, key, RESIDUAL + output, numbers) for output in range(2 * layers)]
    return np.stack(outputs).reshape(layers, 2, *shape)


def attention_masks(probability: float, key: int, layers: int, shape: tuple[int, int, int]) -> Array:
    """Return the masks of the probabilities of attention, (L, B, H, T, T), for a shape (B, H, T)."""
    sequences, heads, tokens = shape
    numbers = np.arange(sequences * tokens * tokens).reshape(sequences, tokens, tokens)
    of_heads = [mask(probability, key, ATTENTION + head, numbers) for head in range(layers * heads)]
    return np.stack(of_heads).reshape(layers, heads, *numbers.shape).swapaxes(1, 2)


def residual_forward(w: Tensors, site: int, x: Array, y: Array) -> Array:
    """Return x + y with dropout of y, if the layer has the masks "residual_mask" (2, B, T, C): then y is stored."""
    masks = w.get("residual_mask")
    return total(x, y if masks is None else multiple(masks[site], stored(y)))


def residual_backward(w: Tensors, site: int, d_out: Array) -> Array:
    """Return the gradient of y, as it is stored."""
    masks = w.get("residual_mask")
    return stored(d_out if masks is None else multiple(masks[site], d_out))
