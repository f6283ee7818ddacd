"""`threadloom tokens`: the vocabulary of a run or of a tokenizer, in its order.

May import: all above.
"""

from threadloom.stages.tools.tokens.command import tokens as tokens
