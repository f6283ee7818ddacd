"""`threadloom doctor`: the machine, its measured rates, and the choices that follow.

May import: models to run.
"""

from threadloom.stages.tools.doctor.examination import doctor_dict, examine
from threadloom.stages.tools.doctor.view import DoctorView

__all__ = [
    "DoctorView",
    "doctor_dict",
    "examine",
]
