"""How fast each precision multiplies on this machine: measured once, and kept on disk. It loads every matrix kernel.

May import: all above.
"""

from threadloom.stages.speeds.speeds import (
    COLUMNS,
    INNER,
    OPERATIONS,
    PRODUCTS,
    ROWS,
    Speeds,
    read_speeds,
    speeds_here,
    speeds_key,
    speeds_path,
)

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
