"""Print the bytes that a process holds with a precision's kernels loaded. Usage: ``process_memory PRECISION``."""

import sys

from threadloom.stages.config import Precision
from threadloom.stages.console import resident_bytes
from threadloom.stages.training import compile_kernels

if __name__ == "__main__":
    compile_kernels(precision=Precision(sys.argv[1]))
    sys.stdout.write(f"{resident_bytes()}\n")
