"""`threadloom train`: a run, or an estimate of its memory and time.

May import: all above.
"""

from threadloom.stages.tools.train.command import train_command as train_command
