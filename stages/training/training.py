"""The assembly: memory and stages of one run, and the graph that joins them.

        draw → embed → forward → backward → collect → reduce → clip → update → publish ─┬→ events
        slot   lease                        a batch   shards   norm   shards   version  ├→ evaluate → events
                                                                                        └→ save     → events

Batch k is in forward while batch k - 1 is in backward and batch k - 2 in the optimizer, as far as the delay τ allows:
what holds batch k back is the lease of version max(k - τ, 0), and nothing else. `Training` knows no threads; `replay`
runs the same stages one after another, and the weights are the same, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from threadloom.pipeline import (
    Abortable,
    Banks,
    Fifo,
    Gather,
    Graph,
    InOrder,
    LaneOrder,
    LanePlan,
    Lanes,
    Node,
    Policy,
    Pool,
)
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import ResolvedConfig, learning_rate
from threadloom.stages.data import BatchSource
from threadloom.stages.memory import Bank, LossScaler, MicroBatch, OrderedAccumulation, arrays_bytes
from threadloom.stages.models import initialise, parameter_shapes
from threadloom.stages.step import (
    Backward,
    Clip,
    Collect,
    Draw,
    Embed,
    EvaluateStage,
    Forward,
    Gradient,
    Moments,
    Optimizer,
    Publish,
    Reduce,
    Save,
    Snapshot,
    Windows,
    compute_for,
    due,
    never,
    plan_micro_batches,
    plan_shards,
)


@dataclass(frozen=True)
class Validation:
    """The windows of every evaluation, and those of the one that ends the run."""

    windows: Windows
    final: Windows


@dataclass(frozen=True)
class Output:
    """Where checkpoints go, and the tokenizer file that is put beside each.

    `ready(step)` is called before the checkpoint of a step is written: it may wait for what must be on the disk first.
    """

    checkpoints: Path
    tokenizer: Path | None = None
    ready: Callable[[int], None] | None = None


class Training:
    """The memory and the stages of one run, all allocated here.

    `data` gives the micro-batches; with `validation` the run evaluates, with `output` it
    writes checkpoints, with `start` it continues from one.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        data: BatchSource,
        validation: Validation | None = None,
        output: Output | None = None,
        start: Checkpoint | None = None,
    ) -> None:
        geometry = config.model.geometry()
        sequences, tokens = config.micro_batch, config.sequences * config.model.context
        self.config = config
        self.compute = compute_for(config.precision, geometry, sequences)
        self.first_batch = start.step if start else 0
        self.plan = LanePlan(config.lanes, config.micro_batches)
        self.slots = Pool([self.compute.allocate_slot() for _ in range(config.slots)])
        self.moments = Moments(geometry)
        self.scaler = LossScaler(config.loss_scale)
        self.banks = self._make_banks(start)
        self.lanes = Lanes(parameter_shapes(geometry), self.plan, self.first_batch)
        self.turns = OrderedAccumulation(geometry, self.lanes, sequences) if config.shared_lanes else None
        self.gradient = Gradient(self.lanes, config.delay)
        self.shards = plan_shards(self.gradient.flat.size, max(config.threads.reduce, config.threads.update))
        self.snapshot = Snapshot(config, self.banks, self.moments) if output else None

        self.draw = Draw(data, self.slots)
        self.embed = Embed(self.compute, self.banks)
        self.forward = Forward(self.compute)
        self.scratch = Pool([self.compute.allocate_scratch() for _ in range(config.max_concurrent_backward)])
        self.backward = Backward(
            self.compute, self.lanes, self.slots, self.scratch, tokens, geometry.context, self.turns
        )
        finish = self.turns.scatter if self.turns else None
        self.collect = Collect(self.banks, self.shards, tokens, self.scaler.on, finish)
        self.reduce = Reduce(self.lanes, self.gradient)
        optimizer = Optimizer(config.optimizer, partial(learning_rate, config.schedule, config.optimizer.lr))
        self.clip = Clip(self.banks, self.lanes, self.gradient, self.shards, optimizer, self.scaler, self.snapshot)
        self.update = self.compute.make_update(self.gradient, self.moments, self.shards.shards)
        evaluation_due = due(config.evaluation.interval, config.steps) if validation else never
        checkpoint_due = due(config.checkpoint.interval, config.steps) if output else never
        self.publish = Publish(self.banks, self.lanes, self.gradient, evaluation_due, checkpoint_due, self.snapshot)
        self.evaluate: EvaluateStage | None = None
        if validation:
            self.evaluate = EvaluateStage(self.compute, validation.windows, validation.final, config.steps)
        self.save: Save | None = None
        if output and self.snapshot:
            self.save = Save(config, self.snapshot, output.checkpoints, output.tokenizer, output.ready)

    def _make_banks(self, start: Checkpoint | None) -> Banks[Bank]:
        """Allocate the banks and fill those that the run starts from."""
        config, geometry = self.config, self.config.model.geometry()
        banks = [Bank(geometry, self.compute.allocate_packed()) for _ in range(config.delay + 1 + config.extra_banks)]
        versions = start.versions if start else (0,)
        published = {version: index for index, version in enumerate(versions)}
        for version, index in published.items():
            banks[index].scaler = self.scaler.start(version, start.scalers.get(version) if start else None)
            if start:
                start.read_weights(version, banks[index].arena)
            else:
                initialise(banks[index].arena, geometry, config.seed, config.model.residual_scaling)
            self.compute.pack_from_master(banks[index])
        if start:
            start.read_moments(self.moments.m, self.moments.v)
        return Banks(banks, config.delay, published)

    def memory(self) -> dict[str, int]:
        """Return the bytes of each part that is allocated for the whole run."""
        snapshot = self.snapshot
        return {
            "weight banks": self.banks.total(lambda bank: bank.nbytes),
            "optimizer moments": self.moments.nbytes,
            "gradient lanes": self.lanes.nbytes,
            "gradient": 0 if self.gradient.in_lane else self.gradient.flat.nbytes,
            "slots": self.slots.total(lambda slot: slot.nbytes),
            "backward scratch": self.scratch.total(arrays_bytes),
            "input gradients": self.turns.nbytes if self.turns else 0,
            "evaluation": self.evaluate.nbytes if self.evaluate else 0,
            "checkpoint copies": snapshot.nbytes if snapshot else 0,
        }

    @property
    def resources(self) -> list[Abortable]:
        """What stages wait on besides channels; a run that ends early wakes them all."""
        optional = [resource for resource in (self.turns, self.snapshot) if resource]
        return [self.banks, self.slots, self.lanes, self.scratch, *optional]

    def graph(self) -> Graph:
        """Return the graph of the stages, ready to be started with `resources`."""
        config, threads = self.config, self.config.threads
        count, shards, capacity = self.plan.micro_batches, self.shards.shards, config.channel_capacity

        def place(item: MicroBatch) -> tuple[int, int]:
            return item.batch, item.micro

        graph = Graph("training")
        plan = graph.source("plan", partial(plan_micro_batches, self.first_batch, config.steps, count))
        draw = graph.stage("draw", self.draw, after=plan, acquire=self.draw.acquire, capacity=capacity)
        embed = graph.stage(
            "embed", self.embed, after=draw, acquire=self.embed.acquire, workers=threads.embed, capacity=capacity
        )
        # Several threads of embed overtake each other. Forward must not follow: it could fill the channel in front of
        # backward with micro-batches whose lanes wait for one that it has yet to take.
        overtaking = threads.embed > 1
        in_turn = InOrder[MicroBatch](
            lambda item: (0, item.batch * count + item.micro), exclusive=False, first=self.first_batch * count
        )
        order: Policy[MicroBatch] = in_turn if overtaking else Fifo()
        forward = graph.stage(
            "forward",
            self.forward,
            after=embed,
            admission=order,
            workers=threads.forward,
            capacity=capacity,
        )
        backward = graph.stage(
            "backward",
            self.backward,
            after=forward,
            acquire=self.backward.acquire,
            admission=LaneOrder(self.plan, place, self.first_batch, shared=self.turns is not None),
            workers=threads.backward,
            capacity=capacity,
        )
        collect = graph.stage(
            "collect",
            self.collect,
            after=backward,
            acquire=self.collect.acquire,
            gather=Gather(key=lambda item: item.batch, count=count),
            expand=True,
            capacity=capacity,
        )
        reduce = graph.stage("reduce", self.reduce, after=collect, workers=threads.reduce, capacity=capacity)
        clip = graph.stage(
            "clip",
            self.clip,
            after=reduce,
            acquire=self.clip.acquire,
            gather=Gather(key=lambda item: item.batch, count=shards),
            expand=True,
            capacity=capacity,
        )
        update = graph.stage("update", self.update, after=clip, workers=threads.update, capacity=capacity)
        publish = graph.stage(
            "publish",
            self.publish,
            after=update,
            acquire=self.publish.acquire,
            gather=Gather(key=lambda item: item.batch, count=shards),
            capacity=capacity,
        )
        reports: list[Node[Any]] = [publish]
        if self.evaluate:
            reports.append(
                graph.stage("evaluate", self.evaluate, after=publish, when=lambda update: update.evaluation is not None)
            )
        if self.save:
            reports.append(
                graph.stage(
                    "save",
                    self.save,
                    after=publish,
                    acquire=self.save.acquire,
                    when=lambda update: update.checkpoint is not None,
                )
            )
        graph.sink("events", after=reports, capacity=64)
        return graph
