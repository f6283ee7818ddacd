"""`threadloom show-data`: sequences of the data as a training sees them, with what counts in the loss.

May import: all above.
"""

from threadloom.stages.tools.show_data.command import show_data as show_data
