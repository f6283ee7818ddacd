"""The same updates without a pipeline: one stage after another, each on all cores, everyone waiting for the slowest.

That is what a step of most trainers is, with our kernels and our micro-batches: the fair thing to compare the pipeline
with, since it gets the same cores. The weights are the same, bit for bit, because a lane sums its micro-batches in the
same order. Up to one micro-batch a lane is under way at a time, or one a thread of backward where lanes are shared;
memory is that of the pipeline.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from threadloom.stages.memory.items import MicroBatch, MicroGradient, Update
from threadloom.stages.memory.plan import most_in_backward
from threadloom.stages.step.forward import plan_micro_batches
from threadloom.stages.training.training import Training


def stage_by_stage(training: Training, cores: int) -> Iterator[Update]:
    """Run the stages of `training` one after another on `cores` threads, and yield the updates.

    Neither evaluates nor saves.
    """
    plan = training.plan
    # A wave is made of neighbours, so no lane has two in it unless lanes are shared. Then a micro-batch waits in the
    # middle of backward for the one before it, which must have found a thread and scratch: each of a wave does.
    together = plan.lanes if training.turns is None else min(most_in_backward(training.config), cores)
    wide = min(together, training.config.slots or 1)
    with ThreadPoolExecutor(cores, thread_name_prefix="bench") as pool:

        def forward(item: MicroBatch) -> None:
            training.forward(training.embed(training.draw(item)))

        for batch in range(training.first_batch, training.config.steps):
            items = list(plan_micro_batches(batch, batch + 1, plan.micro_batches))
            gradients: list[MicroGradient] = []
            for first in range(0, len(items), wide):
                wave = items[first : first + wide]
                for item in wave:
                    training.draw.acquire(item)
                    training.embed.acquire(item)
                list(pool.map(forward, wave))
                for item in wave:
                    training.backward.acquire(item)
                gradients += pool.map(training.backward, wave)
            training.collect.acquire(gradients)
            reduced = list(pool.map(training.reduce, training.collect(gradients)))
            training.clip.acquire(reduced)
            updated = list(pool.map(training.update, training.clip(reduced)))
            training.publish.acquire(updated)
            yield training.publish(updated)
