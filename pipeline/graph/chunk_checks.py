"""Checks of stages whose workers send items to their processes in chunks."""

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.observe import Stage
from threadloom.pipeline.processes import OnProcesses


def check_chunks(subject: str, stage: Stage) -> None:
    """Raise GraphError if a setting of a stage is at odds with taking items before their turn."""
    if not (isinstance(stage.fn, OnProcesses) and stage.fn.chunk > 1):
        return
    reasons = {
        "an exclusive admission policy": getattr(stage.admission, "exclusive", False),
        "rate": stage.rate is not None,
        "acquire": stage.acquire is not None,
        "limit (time_limit of on_processes limits a call)": stage.limit is not None,
    }
    for name, given in reasons.items():
        if given:
            raise GraphError(
                f"{subject} has chunk={stage.fn.chunk}, so that items are sent to a process before their turn, and "
                f"{name}: use one of the two"
            )
