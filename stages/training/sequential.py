"""The updates of a training without the pipeline, for comparison with it.

`replay` calls every stage function in the caller's thread; the pipeline must compute the same bits.

`stage_by_stage` runs one stage after another, each on all cores, as most trainers do. Kernels, micro-batches and cores
are those of the pipeline, so it is the baseline of the pipeline's speed. A lane sums its micro-batches in the same
order, so the weights have the same bits. At most one micro-batch per lane is in flight, or one per thread of backward
if lanes are shared; memory is that of the pipeline.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from threadloom.stages.memory import Event, MicroBatch, MicroGradient, Update
from threadloom.stages.step import plan_micro_batches
from threadloom.stages.training.training import Training


def replay(training: Training) -> Iterator[Event]:
    """Run the stages of `training` in the caller's thread, and yield the events that the pipeline would report.

    No call waits: each batch's version is published before the batch begins, at any delay.
    """
    count = training.plan.micro_batches
    for batch in range(training.first_batch, training.config.steps):
        if training.stops_before(batch):
            return
        gradients = []
        for item in plan_micro_batches(batch, batch + 1, count):
            training.draw.acquire(item)
            training.embed.acquire(training.draw(item))
            training.forward(training.embed(item))
            training.backward.acquire(item)
            gradients.append(training.backward(item))
        training.collect.acquire(gradients)
        reduced = [training.reduce(shard) for shard in training.collect(gradients)]
        training.clip.acquire(reduced)
        updated = [training.update(shard) for shard in training.clip(reduced)]
        training.publish.acquire(updated)
        update = training.publish(updated)
        yield update
        if training.evaluate and update.evaluation is not None:
            yield training.evaluate(update)
        if training.save and update.checkpoint is not None:
            yield training.save(update)


def stage_by_stage(training: Training, cores: int) -> Iterator[Update]:
    """Run the stages of `training` one after another on `cores` threads, and yield the updates.

    Evaluations and checkpoints are left out.
    """
    plan = training.plan
    # A wave consists of consecutive micro-batches, so no two of them are in one lane unless lanes are shared. If they
    # are, a micro-batch waits inside backward for its predecessor, so the whole wave must have threads and scratch.
    together = plan.lanes if training.accumulation is None else min(training.config.max_concurrent_backward, cores)
    width = min(together, training.config.slots)
    with ThreadPoolExecutor(cores, thread_name_prefix="bench") as pool:

        def forward(item: MicroBatch) -> None:
            training.forward(training.embed(training.draw(item)))

        for batch in range(training.first_batch, training.config.steps):
            items = list(plan_micro_batches(batch, batch + 1, plan.micro_batches))
            gradients: list[MicroGradient] = []
            for first in range(0, len(items), width):
                wave = items[first : first + width]
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
