"""Entry points of child processes, run with `stages.console.module_command`; no module imports them.

They have a package without imports, since importing a module first imports its package: a process that measures its
own start must not load other modules before.

May import: all above.
"""
