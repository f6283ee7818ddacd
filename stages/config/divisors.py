"""Divisors, which error messages suggest for sizes that must divide others."""

import math


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, in ascending order."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})
