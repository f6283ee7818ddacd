"""Names, shapes and random values of the tensors of GPT-2."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.integer]
Tensors = dict[str, Array]

DECAYED = ("wte", "wpe", "qkv_weight", "attn_proj_weight", "fc_weight", "mlp_proj_weight")
NORMS = ("ln1", "ln2")


def tensor_shapes(vocabulary: int, context: int, layers: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model."""
    c, hidden = channels, 4 * channels
    linear = {"qkv": (c, 3 * c), "attn_proj": (c, c), "fc": (c, hidden), "mlp_proj": (hidden, c)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (vocabulary, c), "wpe": (context, c)}
    for name, (inputs, outputs) in linear.items():
        shapes |= {f"{name}_weight": (layers, inputs, outputs), f"{name}_bias": (layers, outputs)}
    for name in NORMS:
        shapes |= {f"{name}_weight": (layers, c), f"{name}_bias": (layers, c)}
    return shapes | {"lnf_weight": (c,), "lnf_bias": (c,)}


def random_tensors(
    rng: np.random.Generator, vocabulary: int, context: int, layers: int, channels: int, spread: float = 0.3
) -> Tensors:
    """Return random weights of a model."""
    shapes = tensor_shapes(vocabulary, context, layers, channels)
    return random_of_shapes(rng, shapes, ("ln1_weight", "ln2_weight", "lnf_weight"), spread)


def random_of_shapes(
    rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], gains: tuple[str, ...], spread: float
) -> Tensors:
    """Return weights in which no tensor is zero or one, so that each of them takes part in every gradient.

    The mean of `gains` is 1, that of all others 0. The numbers are float32 ones: a float32 model that is given them
    starts from exactly the same weights.
    """
    tensors = {}
    for name, shape in shapes.items():
        centre = 1.0 if name in gains else 0.0
        tensors[name] = (centre + spread * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)
    return tensors
