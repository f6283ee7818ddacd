"""Entry points of the processes that other rooms start with `stages.console.module_command`; nothing imports them.

They are apart because importing a module first imports its package: this one imports nothing, so a process that
measures its own start loads only what it measures. May import: models to tools.
"""
