"""Lattice arithmetic on matrices: reduction, short and near vectors, rounding to a grid, low rank. Pure functions.

May import: config.
"""

from threadloom.stages.lattice.low_rank import (
    Basis as Basis,
    LowRank as LowRank,
    directions as directions,
    low_rank as low_rank,
)
from threadloom.stages.lattice.near_vectors import (
    EXACT_DIMENSIONS as EXACT_DIMENSIONS,
    FoundVector as FoundVector,
    nearest_vector as nearest_vector,
    shortest_vector as shortest_vector,
)
from threadloom.stages.lattice.reduction import (
    LatticeError as LatticeError,
    Reduction as Reduction,
    integer_gram as integer_gram,
    reduce_gram as reduce_gram,
)
from threadloom.stages.lattice.rounding import (
    Grid as Grid,
    Rounding as Rounding,
    entropy_bits as entropy_bits,
    error_bound as error_bound,
    round_to_grid as round_to_grid,
    rounding_basis as rounding_basis,
    step_of_bits as step_of_bits,
    weighted_error as weighted_error,
)
from threadloom.stages.lattice.scales import (
    Scale as Scale,
    best_scale as best_scale,
    measured_scale as measured_scale,
)
