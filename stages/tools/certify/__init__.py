"""`threadloom certify`: proven errors of a saved model in each number format.

The package python-flint is imported by `balls` alone, when the command runs.

May import: all above.
"""

from threadloom.stages.tools.certify.command import certify as certify
