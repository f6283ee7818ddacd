"""The counter-based generator behind every random choice about a training sequence."""

import numpy as np


def draws_of(seed: int, stream: int, batch: int, sequence: int) -> np.random.Philox:
    """Return the generator Philox4x64-10 of one sequence, keyed by (seed, stream): each use has its own stream.

    It is set to the counter (0, sequence, batch, 0), whose lowest word counts its own draws.
    """
    return np.random.Philox(
        counter=np.array([0, sequence, batch, 0], np.uint64), key=np.array([seed, stream], np.uint64)
    )
