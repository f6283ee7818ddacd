"""Lattices: basis reduction (LLL), nearest points by enumeration and by Babai's plane, decoders of Z, FCC, D4 and E8.

May import: compiling.
"""

from threadloom.kernels.lattice.babai import nearest_planes as nearest_planes
from threadloom.kernels.lattice.blocks import nearest_in_blocks as nearest_in_blocks
from threadloom.kernels.lattice.decoders import BLOCK as BLOCK, Lattice as Lattice, round_rows as round_rows
from threadloom.kernels.lattice.enumeration import enumerate_nearest as enumerate_nearest
from threadloom.kernels.lattice.lll import (
    DELTA as DELTA,
    ETA as ETA,
    LllStatus as LllStatus,
    lll_gram as lll_gram,
)
