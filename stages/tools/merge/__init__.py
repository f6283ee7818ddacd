"""`threadloom merge`: adapters and the model that they belong to as one model.

May import: all above.
"""

from threadloom.stages.tools.merge.command import merge as merge
