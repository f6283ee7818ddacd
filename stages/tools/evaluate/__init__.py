"""`threadloom eval`: the loss of a trained model on a text.

May import: all above.
"""

from threadloom.stages.tools.evaluate.command import evaluate as evaluate
