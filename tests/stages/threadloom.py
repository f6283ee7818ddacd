"""The command line, to be run as a module in a process of its own."""

import sys

from threadloom.stages.cli import main

sys.exit(main())
