"""Packed weights of the factors of bands of low rank (`kernels.common.bands`)."""

from threadloom.kernels.bits16.adamw import pack_rows
from threadloom.kernels.bits16.banded_head import PackedFactors, packed_matrix
from threadloom.kernels.bits16.tensors import PackedPair
from threadloom.kernels.common import BandFactors, Bands, band_basis, band_rows
from threadloom.kernels.compiling import Floats, jit_kernel


@jit_kernel
def _pack(matrix: Floats, pair: PackedPair, start: int) -> None:
    """Round and pack a matrix, and its transpose, at the word `start` of flat arrays."""
    rows, columns = matrix.shape
    packed, packed_t = (
        packed_matrix(pair.packed, start, rows, columns),
        packed_matrix(pair.packed_t, start, columns, rows),
    )
    pack_rows(matrix, 0, PackedPair(packed, packed_t))


@jit_kernel
def pack_bands(factors: BandFactors, bands: Bands, channels: int, packed: PackedFactors) -> None:
    """Round the factors of all bands to bfloat16 and pack them; the padding of `packed` is zeros already."""
    for b in range(bands.rank.shape[0]):
        _pack(band_rows(factors, bands, b), packed.rows, bands.row_word[b])
        if bands.rank[b] < channels:
            _pack(band_basis(factors, bands, b, channels), packed.bases, bands.basis_word[b])
