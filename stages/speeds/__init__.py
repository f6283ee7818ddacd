"""GEMM speed of each precision on this machine, measured once and stored. It loads every matrix kernel.

May import: all above.
"""

from threadloom.stages.speeds.measuring import Speeds as Speeds
from threadloom.stages.speeds.products import (
    COLUMNS as COLUMNS,
    INNER as INNER,
    OPERATIONS as OPERATIONS,
    PRODUCTS as PRODUCTS,
    ROWS as ROWS,
)
from threadloom.stages.speeds.record import (
    read_speeds as read_speeds,
    speeds_here as speeds_here,
    speeds_key as speeds_key,
    speeds_path as speeds_path,
)
from threadloom.stages.speeds.shapes import (
    STANDARD_SHAPES as STANDARD_SHAPES,
    ProductShapes as ProductShapes,
    product_shapes as product_shapes,
)
from threadloom.stages.speeds.variants import (
    KeptVariants as KeptVariants,
    VariantSpeeds as VariantSpeeds,
    kept_variants as kept_variants,
    read_variants as read_variants,
    variant_speeds_here as variant_speeds_here,
    variants_key as variants_key,
    variants_path as variants_path,
)
