"""Tiles of attention's products: those of `kernels.matmul.tile` on results in the L1 cache, and narrow ones.

All of a tile is written, so results are padded to whole tiles. The narrow tile is for the last half of a panel, when
the size of a head is an odd multiple of 16.
"""

from threadloom.kernels.matmul import WIDE_TILE, TileShape, make_tile
from threadloom.kernels.simd import HAS_AVX512_BF16, LANES

NARROW_TILE = TileShape(rows=16 if LANES == 16 else 6, vectors=1)
TILE_ROWS, TILE_COLUMNS = WIDE_TILE.rows, WIDE_TILE.columns
NARROW_ROWS, NARROW_COLUMNS = NARROW_TILE.rows, NARROW_TILE.columns

tile_float32 = make_tile(WIDE_TILE, native=False, cached_result=True)
narrow_float32 = make_tile(NARROW_TILE, native=False, cached_result=True)
tile_native = make_tile(WIDE_TILE, native=True, cached_result=True) if HAS_AVX512_BF16 else tile_float32
narrow_native = make_tile(NARROW_TILE, native=True, cached_result=True) if HAS_AVX512_BF16 else narrow_float32
