"""Compile the kernels of the backward pass into the cache, while the parent compiles the others.

Usage: ``compile_backward PRECISION ARCHITECTURE TEAM``. The process exits when its parent does, which closes its
standard input.
"""

import os
import sys
import threading

from threadloom.stages.config import ModelArchitecture, Precision
from threadloom.stages.training import compile_backward


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through the buffered reader, whose lock the interpreter needs at exit
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    compile_backward(Precision(sys.argv[1]), ModelArchitecture(sys.argv[2]), int(sys.argv[3]))
