"""`threadloom grow`: a larger model that computes the same function, and goes on training.

May import: all above.
"""

from threadloom.stages.tools.grow.command import grow as grow
