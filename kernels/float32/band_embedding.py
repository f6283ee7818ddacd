"""The token embedding of bands of low rank, ``W_b = A_b @ P_b``, and the gradients of its factors (`common.bands`)."""

from threadloom.kernels.common import BandFactors, Bands, band_basis, band_rows
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.matmul import Op, gemm


@jit_kernel
def derive_bands(factors: BandFactors, bands: Bands, embedding: Floats) -> None:
    """Write the rows of all bands to `embedding` (V, C)."""
    channels = embedding.shape[1]
    for b in range(bands.rank.shape[0]):
        rows, out = band_rows(factors, bands, b), embedding[bands.first[b] : bands.last[b]]
        if bands.rank[b] < channels:
            gemm(rows, band_basis(factors, bands, b, channels), out, Op.N, Op.N, 1.0, 0.0)
        else:
            out[:] = rows


@jit_kernel
def _next_rows(d_embedding: Floats, rows: Floats, first: int, d_found: Floats, found: Floats) -> tuple[int, int]:
    """Copy rows with a gradient that is not zero, from row `first` on, until `found` is full or there are no more.

    `d_embedding` and `rows` are those of a band. Return their number and the row after the last one that was read.
    """
    count, v = 0, first
    while v < rows.shape[0] and count < found.shape[0]:
        used = False
        for j in range(d_embedding.shape[1]):
            used |= d_embedding[v, j] != 0.0  # NaN counts
        if used:
            d_found[count] = d_embedding[v]
            found[count] = rows[v]
            count += 1
        v += 1
    return count, v


@jit_kernel
def _add_rows(d_embedding: Floats, products: Floats, first: int, last: int, grads: Floats) -> None:
    """Add the rows of `products` to those of `grads` that `_next_rows` copied."""
    count = 0
    for v in range(first, last):
        used = False
        for j in range(d_embedding.shape[1]):
            used |= d_embedding[v, j] != 0.0
        if used:
            for j in range(grads.shape[1]):
                grads[v, j] += products[count, j]
            count += 1


@jit_kernel
def fold_bands(d_embedding: Floats, factors: BandFactors, bands: Bands, grads: BandFactors, space: Floats) -> None:
    """Add the gradients of the factors that follow from that of the embedding, `d_embedding` (V, C), to `grads`.

    Of the input side of an embedding only the rows of tokens that occur have a gradient; the others are passed over.
    `space` (3, rows, C) is scratch: as many rows are multiplied at a time.
    """
    channels = d_embedding.shape[1]
    for b in range(bands.rank.shape[0]):
        rank, rows, d_rows = bands.rank[b], band_rows(factors, bands, b), band_rows(grads, bands, b)
        part = d_embedding[bands.first[b] : bands.last[b]]
        if rank == channels:
            for v in range(part.shape[0]):
                for j in range(channels):
                    d_rows[v, j] += part[v, j]
            continue
        basis, d_basis = band_basis(factors, bands, b, channels), band_basis(grads, bands, b, channels)
        v = 0
        while v < rows.shape[0]:
            first = v
            count, v = _next_rows(part, rows, first, space[0], space[1][:, :rank])
            if count:
                d_found, found, products = space[0, :count], space[1, :count, :rank], space[2, :count, :rank]
                gemm(d_found, basis, products, Op.N, Op.T, 1.0, 0.0)
                _add_rows(part, products, first, v, d_rows)
                gemm(found, d_found, d_basis, Op.T, Op.N, 1.0, 1.0)
