"""Measured speeds, stored per machine and read again by later processes.

They are stored with everything that they depend on (`speeds_key`) in

    $XDG_CACHE_HOME/threadloom/precision/MACHINE.json, or $THREADLOOM_CACHE/precision/MACHINE.json

A damaged file, or one of another processor, version or kernel, is measured again and replaced. One process measures at
a time, and others wait for its result. If the file cannot be written, each process measures for itself, and says so.
"""

import threading
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import msgspec

from threadloom.kernels import GemmBackend, blas_info
from threadloom.kernels.compiling import SOURCES, TARGET
from threadloom.kernels.simd import low_precision_info
from threadloom.stages.machine import cache_root, detect
from threadloom.stages.speeds.measuring import Speeds, measure_speeds
from threadloom.stages.speeds.products import COLUMNS, INNER, PRODUCTS, ROWS
from threadloom.stages.speeds.stored import measured_once, read_record


class SpeedsRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file."""

    key: dict[str, str]
    speeds: Speeds


def speeds_key() -> dict[str, str]:
    """Return everything that the speeds depend on, by name."""
    blas = blas_info(load=False)
    library = f"{blas.name} {blas.version} {blas.architecture}" if blas.backend is GemmBackend.BLAS else ""
    return {
        "cpu": detect().cpu,
        "features": " ".join(sorted(name for name, present in TARGET.items() if present)),
        "path": low_precision_info().path.name,
        "gemm": blas.backend.value,
        "blas": library,
        **{name: version(name) for name in ("numba", "llvmlite")},
        "kernels": SOURCES.whole,
        "precisions": " ".join(precision.value for precision in PRODUCTS),
        "product": f"{ROWS} x {INNER} x {COLUMNS}",
    }


def speeds_path() -> Path:
    """Return the file of this machine; machines that share a home directory have different files."""
    return cache_root() / "precision" / f"{detect().fingerprint()}.json"


def read_speeds(path: Path, key: Mapping[str, str]) -> Speeds | None:
    """Return the speeds in a file, or None if it is missing, damaged or has another key."""
    record = read_record(path, SpeedsRecord)
    return record.speeds if record and record.key == key else None


def stored_speeds(path: Path, key: Mapping[str, str], measure: Callable[[], Speeds]) -> Speeds:
    """Return the speeds in a file; if it has none with this key, measure and write them.

    Errors of reading, locking or writing the file are logged, not raised.
    """
    return measured_once(
        path,
        "the speed of each precision",
        read=lambda: read_speeds(path, key),
        measure=measure,
        encode=lambda speeds: msgspec.json.encode(SpeedsRecord(dict(key), speeds)),
    )


_measuring = threading.Lock()  # concurrent measurements would halve each other's speeds


def speeds_here() -> Speeds:
    """Return the speeds of this machine, the same for the lifetime of the process."""
    with _measuring:
        return _process_speeds(speeds_path(), tuple(speeds_key().items()))


@cache
def _process_speeds(path: Path, key: tuple[tuple[str, str], ...]) -> Speeds:
    """Return the speeds of this process; without a file, a second measurement could change a choice within a run."""
    return stored_speeds(path, dict(key), measure_speeds)
