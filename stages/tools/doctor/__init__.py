"""`threadloom doctor`: the machine, its measured rates, and the choices that follow.

May import: all above.
"""

from threadloom.stages.tools.doctor.command import doctor as doctor
