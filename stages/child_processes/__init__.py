"""Entry points of child processes, started by `stages.console.module_command`; no module imports them.

This package imports nothing. Python imports a package before a module in it, and a process that measures the time of
its start must load no other modules first.

May import: all above.
"""
