"""GEMM speed of each precision on this machine, measured once and stored. It loads every matrix kernel.

May import: all above.
"""

from threadloom.stages.speeds.measuring import Speeds
from threadloom.stages.speeds.products import COLUMNS, INNER, OPERATIONS, PRODUCTS, ROWS
from threadloom.stages.speeds.record import read_speeds, speeds_here, speeds_key, speeds_path

__all__ = [
    "COLUMNS",
    "INNER",
    "OPERATIONS",
    "PRODUCTS",
    "ROWS",
    "Speeds",
    "read_speeds",
    "speeds_here",
    "speeds_key",
    "speeds_path",
]
