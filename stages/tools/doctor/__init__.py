"""`threadloom doctor`: what this machine has and what follows.

May import: models to run.
"""

from threadloom.stages.tools.doctor.doctor import examine, to_dict
from threadloom.stages.tools.doctor.view import ReportView

__all__ = [
    "ReportView",
    "examine",
    "to_dict",
]
