"""Tests of the texts for durations, rates and sizes."""

import math

import pytest

from threadloom.pipeline import format_bytes, format_clock, format_duration, format_estimate, format_rate


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ns"),
        (84e-9, "84 ns"),
        (12.3e-6, "12 µs"),
        (0.84e-3, "840 µs"),
        (0.9996, "1.0 s"),
        (110.4, "110 s"),
        (75, "75.0 s"),
    ],
)
def test_measured_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (59.7, "60 s"), (130, "2 min"), (7100, "118 min"), (7260, "2 h 01 min")]
)
def test_estimated_durations(seconds: float, text: str) -> None:
    assert format_estimate(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (7.4, "0:07"),
        (59.7, "1:00"),
        (754, "12:34"),
        (3723, "1:02:03"),
        (None, "-:--"),
        (-1.0, "-:--"),
        (math.nan, "-:--"),
        (math.inf, "-:--"),
    ],
)
def test_durations_on_a_clock(seconds: float | None, text: str) -> None:
    assert format_clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [(0, 1, "0/s"), (12345, 1, "12,345/s"), (123, 10, "12.3/s"), (42, 100, "0.42/s"), (3, 60, "3/min"), (1, 0, "0/s")],
)
def test_rates(count: int, seconds: float, text: str) -> None:
    assert format_rate(count, seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "unknown"),
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (32 << 20, "32 MiB"),
        (25_200_000_000, "23.47 GiB"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    assert format_bytes(size) == text
