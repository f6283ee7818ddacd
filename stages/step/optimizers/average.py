"""The exponential moving average of the weights (`optimizer.ema`)."""

from collections.abc import Mapping

import numpy as np

from threadloom import kernels
from threadloom.kernels import Floats
from threadloom.pipeline import Arena
from threadloom.stages.models import Shape


class WeightAverage:
    """The average ā of the weights w_1, w_2, ... after each update that was not skipped.

    ā_1 = w_1 and ā_t = ā_{t-1} + (1 − decay) (w_t − ā_{t-1}), as torch.optim.swa_utils.AveragedModel with
    `get_ema_multi_avg_fn(decay)`. Elements are independent, so shards may be averaged in any order.
    """

    def __init__(self, decay: float, shapes: Mapping[str, Shape]) -> None:
        """Allocate the average of tensors with `shapes`, and compile the kernel."""
        self.arena = Arena(shapes)
        self._share = 1.0 - decay
        kernels.average_weights(self.arena.flat[:1], self.arena.flat[:1], 0.0)

    def take(self, average: Floats, weights: Floats, applied: int) -> None:
        """Add a range of the weights to the same range of the average, after `applied` updates with this one."""
        if applied == 1:
            np.copyto(average, weights)
        else:
            kernels.average_weights(average.reshape(-1), weights.reshape(-1), self._share)
