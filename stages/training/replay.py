"""The same training in one thread, stage function after stage function: what the pipeline must equal, bit for bit."""

from collections.abc import Iterator

from threadloom.stages.memory.items import Event
from threadloom.stages.step.forward import plan_micro_batches
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
