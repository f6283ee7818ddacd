"""The same updates without a pipeline, for comparison with it.

`replay` runs every stage function in the caller's thread: the pipeline must give the same bits.

`stage_by_stage` runs one stage after another, each on all cores, as the step of most trainers does. It uses the same
kernels, micro-batches and cores, so it is the baseline of the pipeline's speed. A lane sums its micro-batches in the
same order, so the weights have the same bits. One micro-batch per lane is in flight at a time, or one per thread of
backward if lanes are shared; memory is that of the pipeline.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from threadloom.stages.memory import Event, MicroBatch, MicroGradient, Update
from threadloom.stages.step import plan_micro_batches
from threadloom.stages.training.training import Training


def replay(training: Training) -> Iterator[Event]:
    """Run the stages of `training` sequentially, in the caller's thread, and yield what the pipeline would report.

    Nothing waits here: each batch's version is published before the batch begins, whatever the delay.
    """
    count = training.plan.micro_batches
    for batch in range(training.first_batch, training.config.steps):
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

    Neither evaluates nor saves.
    """
    plan = training.plan
    # A wave is made of neighbours, so no lane has two in it unless lanes are shared. Then a micro-batch waits in the
    # middle of backward for the one before it, which must have found a thread and scratch: each of a wave does.
    together = plan.lanes if training.turns is None else min(training.config.max_concurrent_backward, cores)
    wide = min(together, training.config.slots)
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
