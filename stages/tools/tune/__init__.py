"""`threadloom tune`: a search for the fastest thread counts and sizes.

May import: all above.
"""

from threadloom.stages.tools.tune.command import tune as tune
