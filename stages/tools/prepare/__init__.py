"""`threadloom prepare`: the tokens of a text in a folder that any number of runs may train on, and a report on it.

May import: all above.
"""

from threadloom.stages.tools.prepare.command import prepare as prepare
