"""One sub-package per command that is not `train`.

May import: models to run.
"""
