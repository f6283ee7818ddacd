"""`threadloom reduce`: the token embedding of a model, rounded to few bits or of low rank.

May import: all above.
"""

from threadloom.stages.tools.reduce.command import reduce as reduce
