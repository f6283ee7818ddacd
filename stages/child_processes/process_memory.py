"""Print the bytes that a process holds with the kernels of a precision and an architecture loaded.

Usage: ``process_memory PRECISION ARCHITECTURE``.
"""

import sys

from threadloom.stages.config import ModelArchitecture, Precision
from threadloom.stages.console import resident_bytes
from threadloom.stages.training import compile_kernels

if __name__ == "__main__":
    compile_kernels(precision=Precision(sys.argv[1]), architecture=ModelArchitecture(sys.argv[2]))
    sys.stdout.write(f"{resident_bytes()}\n")
