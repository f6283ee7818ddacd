"""`threadloom sample`: text from a trained model.

May import: all above.
"""

from threadloom.stages.tools.sample.command import print_sample as print_sample, sample as sample
