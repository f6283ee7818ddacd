"""The commands: one sub-package each. `common` has the options and the error messages that they share.

Each `__init__` exports the click command, whose module imports everything heavy within functions: `threadloom --help`
imports all commands.
"""
