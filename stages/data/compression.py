"""The formats of compressed files that are read as text."""

from typing import NamedTuple


class Compression(NamedTuple):
    """A format of compressed files: its first bytes, suffix, modules and command."""

    name: str
    magic: bytes
    suffix: str
    modules: tuple[str, ...]
    """Modules with a function `open`, of which the first that is installed is used."""
    command: str


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b", ".gz", ("gzip",), "gzip"),
    Compression("zstd", b"\x28\xb5\x2f\xfd", ".zst", ("compression.zstd", "backports.zstd"), "zstd"),
    Compression("bzip2", b"BZh", ".bz2", ("bz2",), "bzip2"),
    Compression("xz", b"\xfd7zXZ\0", ".xz", ("lzma",), "xz"),
)
