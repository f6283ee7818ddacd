"""The orders in which forward and backward admit micro-batches."""

from threadloom.pipeline import Fifo, InOrder, LaneOrder, LanePlan, Policy
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.memory import MicroBatch


def forward_order(config: ResolvedConfig, plan: LanePlan, first_batch: int) -> Policy[MicroBatch]:
    """Return the admission order of forward.

    Several threads of embed overtake each other. Forward must restore the order: otherwise it could fill the input
    channel of backward with micro-batches whose lanes wait for one that it has not received yet.
    """
    if config.threads.embed == 1:
        return Fifo()
    count = plan.micro_batches
    return InOrder(lambda item: (0, item.batch * count + item.micro), exclusive=False, first=first_batch * count)


def backward_order(config: ResolvedConfig, plan: LanePlan, first_batch: int) -> Policy[MicroBatch]:
    """Return the admission order of backward: ascending within each lane, one at a time unless lanes are shared."""
    return LaneOrder(plan, lambda item: (item.batch, item.micro), first_batch, shared=config.shared_lanes)
