"""Durations, rates and sizes as short texts for terminals, logs and pictures."""

import math
import unicodedata


def format_duration(seconds: float) -> str:
    """Return a measured duration to about two digits, the accuracy of a Distribution: 840 ns, 12 µs, 3.4 ms, 1.2 s."""
    for unit, size in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 995 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def format_estimate(seconds: float) -> str:
    """Return an estimated duration, no finer than its accuracy: 0.2 s, 59 s, 12 min, 2 h 05 min."""
    if round(seconds) < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_clock(seconds: float | None) -> str:
    """Return a duration as a clock shows it, to the nearest second: 0:07, 12:34, 1:02:03; -:-- if it is unknown.

    Unknown are None, negative numbers, infinities and NaN.
    """
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_rate(count: float, seconds: float) -> str:
    """Return `count` per `seconds` to three digits: 1,234/s, 12.3/s, 0.42/s, and per minute below 0.1/s: 3.1/min."""
    rate = count / seconds if seconds > 0 else 0.0
    if 0 < rate < 0.1:
        return f"{rate * 60:.2g}/min"
    digits = max(0, 2 - math.floor(math.log10(rate))) if 0 < rate < 100 else 0
    return f"{rate:,.{min(digits, 2)}f}/s"


def format_bytes(size: int | None) -> str:
    """Return a size in binary units to four digits: 512 bytes, 1.5 KiB, 32 MiB, 23.47 GiB; unknown for None."""
    if size is None:
        return "unknown"
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} bytes"


def single_line(text: str) -> str:
    """Return `text` in one line: control characters and separators, which terminals interpret, become spaces."""
    return "".join(" " if unicodedata.category(each)[0] in "CZ" else each for each in text)
