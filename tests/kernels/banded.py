"""The head of a model whose embedding is of low rank by bands, held against float64 in every number format."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.error_bounds import Storage, with_bounds
from tests.kernels.comparison import assert_close
from tests.kernels.support import with_ignored
from tests.reference import Array, Ids, Tensors
from tests.reference.bands import Band, banded_head
from threadloom.kernels.common import AccumulationTicket, BandedConstants, BandedWeights, bands_of, single_writer
from threadloom.kernels.common.tensors import NO_LORA, LossTerms

BANDS = [(5, 8), (37, 3), (4190, 7)]
"""A band with all channels of a small model, and two of low rank; the last one crosses a part of the accumulation."""
ONE_BAND = [(43, 5)]

TERMS = 0.1, 1e-2
"""Label smoothing and z-loss."""

Backward = Callable[[Ids, float, AccumulationTicket], float]
"""Calls `head_backward` with targets, scale and ticket."""


def banded_constants(sizes: Sequence[tuple[int, int]], heads: int, channels: int) -> BandedConstants:
    """Return the constants of a model of bands of these (tokens, rank)."""
    return BandedConstants(heads, NO_LORA, bands_of(sizes, channels), LossTerms(*TERMS, np.zeros(2)))


def flat_factors(bands: Sequence[Band]) -> tuple[Array, Array]:
    """Return all A_b, and all P_b, one after another."""
    bases = [basis.ravel() for _, basis in bands if basis is not None]
    return np.concatenate([rows.ravel() for rows, _ in bands]), np.concatenate([np.empty(0), *bases])


def check_head(
    x: Array, norm: tuple[Array, Array], bands: Sequence[Band], storage: Storage, grads: BandedWeights, dx: Any,
    backward: Backward, loss_alone: Callable[[Ids], float],
) -> None:  # fmt: skip
    """Compare the losses, and the gradients of two micro-batches that are added, with the reference."""
    rng, scale = np.random.default_rng(9), 0.25
    vocabulary = sum(len(rows) for rows, _ in bands)
    targets = [with_ignored(rng.integers(0, vocabulary, len(x))) for _ in range(2)]

    def results() -> Tensors:
        first, second = (banded_head(x, norm, bands, of, scale, TERMS) for of in targets)
        both = {name: first[name] + second[name] for name in ("rows", "bases", "lnf_weight", "lnf_bias")}
        return {**both, "dx": second["dx"], "loss": second["loss"]}

    expected, bounds = with_bounds(results, storage)
    backward(targets[0], scale, single_writer(accumulate=False))
    assert not grads.wte.any()
    grads.wte[...] = 1.0
    loss = backward(targets[1], scale, single_writer(accumulate=True))
    assert (grads.wte == 1.0).all()
    found = {"rows": grads.wte_rows, "bases": grads.wte_bases, "dx": dx, "loss": np.array(loss)}
    found |= {name: getattr(grads, name) for name in ("lnf_weight", "lnf_bias")}
    for name, tensor in expected.items():
        assert_close(found[name], tensor, bounds[name], name)
    assert_close(np.array(loss_alone(targets[1])), expected["loss"], bounds["loss"], "loss alone")
