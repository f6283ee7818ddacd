"""Whether threadloom and PyTorch compute the same: the losses and gradient norms of some updates.

In float32 both sides train from the same weights, so that the optimizer is compared too. The first loss agrees to about
1e-7; later ones depend on AdamW, whose first update has full size however small a gradient is: where rounding decides
the sign, a weight differs by twice the learning rate. In 16 bits these are many weights, and trajectories part by more
than a wrong kernel would cause. There PyTorch, in float32, starts each update anew from the weights that threadloom has
before it. (The optimizer is float32 in every precision; the check of float32 compares it.)

At equal weights the 16-bit sides differ by roundings, which are independent. The error of a rounding to p bits,
relative to the number, has a root mean square of 0.42 * 2**-p: uniform in +-2**-p / m for a significand m from 1 to 2
with density 1 / (m log 2). A block rounds at most 12 arrays on a path forward (outputs of norms, of linear layers, of
attention and of the activation; the weights and the probabilities that multiply them) and as many backward. The
residual stream is a sum over the blocks: errors add up as squares, as their outputs do, so that relative to the stream
they do not grow with the depth. The gradient of a weight has the errors of the stream below (12) and above it (12), and
those of its own block in both directions (24): `ROUNDINGS`. The norm of a vector changes by at most the norm of its
error. The loss changes by the error of the logits, whose root mean square is about 1 or less in a model that has hardly
been trained.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.protocol import FLOAT32, Side, SideWorker, TrainingSizes, UpdateFigures
from threadloom.stages.config import Precision

CHECKED_UPDATES = 3
TOLERANCES_FLOAT32 = (2e-5, 1e-3)
"""Relative tolerances of loss and gradient norm."""
SIGNIFICANT_BITS = {Precision.BF16.value: 8, Precision.FP16.value: 11}
BITS16 = tuple(SIGNIFICANT_BITS)
ROUNDINGS = 48


class CheckFailed(RuntimeError):
    """The sides compute different results."""


def rounding_error(precision: str) -> float:
    """Return the error of a gradient in 16 bits relative to its norm, and of the loss in nats; see above."""
    return 0.42 * 2.0 ** -SIGNIFICANT_BITS[precision] * math.sqrt(ROUNDINGS)


def check_equal(
    config: str, sizes: TrainingSizes, delays: Sequence[int], precision: str = FLOAT32, peer: Side = Side.EAGER
) -> str:
    """Compare losses and gradient norms of a few updates. Return a summary; raise CheckFailed if they differ.

    At delay 0 all of them are compared; at another delay only the first update is the same by definition. The `peer`
    computes in float32, for any precision of threadloom.
    """
    summaries = []
    for delay in delays:
        updates = CHECKED_UPDATES if delay == 0 else 1
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with SideWorker(Side.OURS, config, sizes, delay, folder, precision) as ours:
                starts = [1] * updates if precision in BITS16 else [updates]
                mine, theirs = _figures(ours, peer, starts, sizes, folder)
        summary = require_equal(mine, theirs, precision, peer.framework)
        summaries.append(f"{precision} τ={delay}: {summary}")
    return "; ".join(summaries)


def require_equal(mine: UpdateFigures, theirs: UpdateFigures, precision: str, framework: str = "PyTorch") -> str:
    """Compare updates of threadloom and of a peer. Return a summary; raise CheckFailed if they differ.

    In 16 bits each update must begin with the same weights on both sides.
    """
    loss, norm = _differences(mine.losses, theirs.losses), _differences(mine.grad_norms, theirs.grad_norms)
    if precision in BITS16:
        error = rounding_error(precision)
        agree = loss[0] <= error and norm[1] <= error
    else:
        agree = loss[1] <= TOLERANCES_FLOAT32[0] and norm[1] <= TOLERANCES_FLOAT32[1]
    if not agree:
        raise CheckFailed(
            f"threadloom in {precision} and {framework} disagree: losses {mine.losses} and {theirs.losses}, "
            f"gradient norms {mine.grad_norms} and {theirs.grad_norms}"
        )
    updates = f"{mine.updates} update{'s' if mine.updates > 1 else ''}"
    return f"{updates}, loss within {loss[1]:.0e}, gradient norm within {norm[1]:.0e}"


def _figures(
    ours: SideWorker, side: Side, starts: Sequence[int], sizes: TrainingSizes, folder: Path
) -> tuple[UpdateFigures, UpdateFigures]:
    """Return the figures of both sides: for each number in `starts`, so many updates from the same weights.

    `ours` keeps its newest weights, and the tokens of the updates that are left, in `folder`.
    """
    pairs = []
    ours.run(0)  # returns once the process has started and written its first inputs
    for updates in starts:
        with SideWorker(side, "", sizes, folder=folder) as peer:
            theirs = peer.run(updates)
        pairs.append((ours.run(updates), theirs))
    mine, others = zip(*pairs, strict=True)
    return _joined(mine), _joined(others)


def _joined(figures: Sequence[UpdateFigures]) -> UpdateFigures:
    losses, norms = (
        [loss for one in figures for loss in one.losses],
        [norm for one in figures for norm in one.grad_norms],
    )
    return UpdateFigures(sum(one.seconds for one in figures), losses, norms)


def _differences(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the largest absolute and the largest relative difference; infinity if a number is not finite."""
    pairs = [(abs(a - b) if math.isfinite(a) else math.inf, abs(b)) for a, b in zip(mine, theirs, strict=True)]
    return max(difference for difference, _ in pairs), max(difference / size for difference, size in pairs)
