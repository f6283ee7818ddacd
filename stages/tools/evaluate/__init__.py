"""`threadloom eval`: the loss of a trained model on a text, its answers to questions, tasks of lm-evaluation-harness.

May import: all above.
"""

from threadloom.stages.tools.evaluate.command import evaluate as evaluate
