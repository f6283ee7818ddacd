"""Kernels on other processors: `python -m tests.targets`, or `make targets`.

Compiles every kernel for a list of processors, each in its own process, runs the kernel tests on those whose
instructions this machine has, and prints for each kernel its largest error against float64 and the vector width of its
inner loops.
"""
