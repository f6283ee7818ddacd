"""Bytes that the streaming passes of an update move through memory."""

from threadloom.stages.memory.allocation_plan import FLOAT


def reduction_bytes(elements: int, lanes: int) -> float:
    """Return the bytes moved by the sum of gradient lanes: every lane read, the sum written."""
    return FLOAT * float((lanes + 1) * elements)


def adamw_bytes(elements: int, *, forecasts: bool = False) -> float:
    """Return the bytes moved by AdamW: weights, gradient and both moments read, weights and moments written.

    If the versions are forecasts, those are written too.
    """
    return FLOAT * (8.0 if forecasts else 7.0) * elements
