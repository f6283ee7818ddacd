"""The update of a matrix, or of rows of it, by AdamW in a rotated basis (`kernels.common.adamw_rotated`).

Q (k, k) rotates the columns of a matrix (rows, k), G Q, or its rows, Qᵀ G with a matrix (k, columns). `scratch` has
three times the elements of the part.
"""

from threadloom.kernels.common import (
    DelayedAdamWStep,
    rotated_directions,
    rotated_forecast_update,
    rotated_update,
)
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.matmul import Op, gemm


@jit_kernel
def rotate(matrix: Floats, basis: Floats, columns: bool, out: Floats) -> None:
    """Write a matrix in coordinates of a basis to `out`."""
    if columns:
        gemm(matrix, basis, out, Op.N, Op.N, 1.0, 0.0)
    else:
        gemm(basis, matrix, out, Op.T, Op.N, 1.0, 0.0)


@jit_kernel
def rotate_back(matrix: Floats, basis: Floats, columns: bool, out: Floats) -> None:
    """Write a matrix that is in coordinates of a basis, in those of the weights, to `out`."""
    if columns:
        gemm(matrix, basis, out, Op.N, Op.T, 1.0, 0.0)
    else:
        gemm(basis, matrix, out, Op.N, Op.N, 1.0, 0.0)


@jit_kernel
def _turn(m: Floats, turn: Floats, columns: bool, buffer: Floats) -> None:
    """Bring moments into the coordinates of a new basis; `turn` (0, 0): they are in them."""
    if turn.shape[0] > 0:
        rotate(m, turn, columns, buffer)
        m[:, :] = buffer


@jit_kernel
def rotated_adamw(
    old: Floats, new: Floats, gradient: Floats, m: Floats, v: Floats, basis: Floats, turn: Floats, columns: bool,
    scratch: Floats, step: DelayedAdamWStep,
) -> None:  # fmt: skip
    """Write the new weights to `new`, which may be `old`, and update the moments in place; all are (rows, columns)."""
    size = m.size
    direction, turned = scratch[:size].reshape(m.shape), scratch[size : 2 * size].reshape(m.shape)
    _turn(m, turn, columns, turned)
    rotate(gradient, basis, columns, direction)
    rotated_directions(direction.reshape(size), scratch[:0], m.reshape(size), v.reshape(size), step)
    rotate_back(direction, basis, columns, turned)
    rotated_update(old.reshape(size), new.reshape(size), turned.reshape(size), step)


@jit_kernel
def rotated_adamw_forecast(
    weights: Floats, forecast: Floats, gradient: Floats, m: Floats, v: Floats, basis: Floats, turn: Floats,
    columns: bool, scratch: Floats, step: DelayedAdamWStep,
) -> None:  # fmt: skip
    """Update weights and moments in place, and write the forecast of the weights; all are (rows, columns)."""
    size = m.size
    direction, turned = scratch[:size].reshape(m.shape), scratch[size : 2 * size].reshape(m.shape)
    ahead = scratch[2 * size : 3 * size]
    own = step.forecast_lead != step.lead  # otherwise both directions are one
    _turn(m, turn, columns, turned)
    rotate(gradient, basis, columns, direction)
    rotated_directions(direction.reshape(size), ahead if own else ahead[:0], m.reshape(size), v.reshape(size), step)
    rotate_back(direction, basis, columns, turned)
    if own:
        rotate_back(ahead.reshape(m.shape), basis, columns, direction)
        rotated_forecast_update(
            weights.reshape(size), forecast.reshape(size), turned.reshape(size), direction.reshape(size), step
        )
    else:
        flat = turned.reshape(size)
        rotated_forecast_update(weights.reshape(size), forecast.reshape(size), flat, flat, step)
