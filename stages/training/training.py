"""The assembly of a run: its memory, its stages, and the graph that joins them.

    draw ─→ embed ─→ forward ─→ backward ─→ collect ─→ reduce ─→ clip ─→ update ─→ publish ─┬─→ events
                                            (batch)   (shard)  (batch)  (shard)   (batch)   ├─→ evaluate ─→ events
                                                                                            └─→ save ─────→ events

    time ──→           1       2       3       4       5         with delay τ = 2 and stages of equal duration
    forward            k     k + 1   k + 2   k + 3   k + 4
    backward         k - 1     k     k + 1   k + 2   k + 3
    reduce … publish k - 2   k - 1     k     k + 1   k + 2

Batch k reads version max(k - τ, 0) of the weights, one of the first `schedule.synchronous` ones version k, and `embed`
waits until it is published. No other wait orders the batches, so up to τ + 1 are in flight. A `Training` has no thread:
`graph()` declares the pipeline, `stages.training.sequential` calls the stages in one thread, with the same bits.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from threadloom.kernels import Floats
from threadloom.pipeline import (
    Abortable,
    Arena,
    Banks,
    Controller,
    Gather,
    Graph,
    LanePlan,
    Lanes,
    Node,
    Pool,
    WorkerChange,
)
from threadloom.stages.checkpoint import AVERAGE, BASES, Checkpoint
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.data import BatchSource
from threadloom.stages.embedding import DerivedEmbedding, VocabularyFacts, derived_embedding
from threadloom.stages.memory import (
    Bank,
    Evaluation,
    FrozenWeights,
    LossScaler,
    MicroBatch,
    OrderedAccumulation,
    Saved,
    SpikeGuard,
    arrays_bytes,
    check_allocation,
    memory_plan,
    overlaid,
)
from threadloom.stages.models import (
    InitialWeights,
    OrderedWeights,
    RandomWeights,
    VocabularyOrder,
    architecture_of,
    lora_shapes,
    parameter_shapes,
    trained_shapes,
)
from threadloom.stages.step import (
    Backward,
    CheckpointOutput,
    CheckpointSnapshot,
    Clip,
    Collect,
    Draw,
    EarlyStopping,
    Embed,
    EmbeddingFactors,
    EvaluateStage,
    EvaluationCopies,
    EvaluationCopy,
    Forward,
    GcdLoss,
    Gradient,
    NoiseMeter,
    Publish,
    Reduce,
    RunRecord,
    Save,
    Teams,
    Validation,
    due_every,
    never,
    plan_micro_batches,
    plan_shards,
    rotated_stage,
)
from threadloom.stages.step.optimizers import FORECAST, MASTER, create_optimizer
from threadloom.stages.training.admission import backward_order, forward_order
from threadloom.stages.training.precisions import compute_for, divided_compute


class Training:
    """The memory and the stages of one run, all allocated on construction.

    `data` yields the micro-batches. With `validation` the run evaluates, with `output` it writes checkpoints, with
    `start` it continues from one. Otherwise it starts from the weights `initial`; None: random weights.

    If `data` and `validation` have rows of an `order` instead of the tokenizer's ids, so have the weights in memory.
    Those in files, and `initial` ones, are in the order of the tokenizer.

    `losses` are the validation losses up to `start`, step → loss, which `evaluation.patience` counts.

    `derived` computes the token embedding of a model with factors; None: as for a vocabulary of which nothing is known.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        data: BatchSource,
        validation: Validation | None = None,
        output: CheckpointOutput | None = None,
        start: Checkpoint | None = None,
        initial: InitialWeights | None = None,
        order: VocabularyOrder | None = None,
        derived: DerivedEmbedding | None = None,
        losses: Mapping[int, float] | None = None,
    ) -> None:
        geometry = config.geometry()
        frozen = config.frozen_tensors()
        updated = parameter_shapes(geometry, frozen)
        self.config = config
        self.first_batch = start.step if start else 0
        self.plan = LanePlan(config.lanes, config.micro_batches)
        self.compute = compute_for(
            config.precision,
            geometry,
            config.micro_batch,
            recompute=config.recompute,
            borders=config.bordered,
            dropout=config.dropout,
        )
        memory = self.compute.memory
        self.scaler = LossScaler(config.loss_scale)
        self.guard = SpikeGuard(config.guard)

        self.optimizer = create_optimizer(config)
        derived = derived or derived_embedding(config.embedding, VocabularyFacts(geometry.vocabulary))
        clip_value = config.optimizer.clip_value
        self.factors = EmbeddingFactors(derived, self.compute, geometry, clip_value) if derived else None
        if start:
            start.require_embedding(derived.digest if derived else None)
        self.frozen = FrozenWeights(geometry, frozen, memory)
        self.banks = self._allocate_banks(start, initial, order)
        self.lanes = Lanes(updated, self.plan, self.first_batch)
        self.gradient = Gradient(self.lanes, config.delay)
        self.slots = Pool([memory.allocate_slot() for _ in range(config.slots)])
        self.scratch = Pool([memory.allocate_scratch() for _ in range(config.max_concurrent_backward)])
        self.teams = Teams(config, memory) if config.threads.team > 1 else None
        divided = divided_compute(config, self.teams) if self.teams else self.compute
        self.accumulation: OrderedAccumulation | None = None
        if config.shared_lanes:
            self.accumulation = OrderedAccumulation(geometry, self.lanes, config.micro_batch, borders=config.bordered)
        self.snapshot: CheckpointSnapshot | None = None
        if output:
            self.snapshot = CheckpointSnapshot(
                trained_shapes(geometry, frozen), self.banks, self._saved_state(), copies=config.checkpoint.copies
            )

        self.shards = plan_shards(self.gradient.flat.size, max(config.threads.reduce, config.threads.update))
        self._evaluation_due = due_every(config.evaluation.interval, config.steps) if validation else never
        checkpoint_due = due_every(config.checkpoint.interval, config.steps) if output else never
        finish = self.accumulation.scatter_deferred if self.accumulation else None

        drops = config.dropout.drops or (geometry.lora is not None and geometry.lora.dropout > 0)
        self.draw = Draw(data, self.slots, config.seed if drops else None, config.context_warmup)
        self.embed = Embed(self.compute, self.banks)
        self.forward = Forward(divided)
        self.backward = Backward(
            divided, self.lanes, self.slots, self.scratch, geometry, config.loss, self.accumulation
        )
        rotation, skips = self.optimizer.rotation, self.scaler.on or self.guard.skips
        self.collect = Collect(self.banks, self.shards, skips=skips, finish=finish, rotation=rotation)
        folded = self.factors is not None and self.factors.in_memory  # then it clips the gradients of the factors
        noise = NoiseMeter(self.lanes, config.micro_batch) if config.noise_scale else None
        limit = 0.0 if folded else clip_value
        self.reduce = Reduce(self.lanes, self.gradient, limit, noise, rotation, self.shards.shards)
        self.clip = Clip(
            self.banks, self.lanes, self.gradient, self.shards, self.optimizer, self.scaler, self.snapshot,
            self.factors, self.guard, noise,
        )  # fmt: skip
        self.rotated = rotated_stage(config, self.gradient, self.optimizer, self.compute, self.shards.shards)
        self.update = self.rotated or self.compute.update_stage(self.gradient, self.optimizer, self.shards.shards)
        copies = self._copies = self._allocate_evaluation_copies() if validation else EvaluationCopies()
        self.publish = Publish(
            self.banks, self.lanes, self.gradient, self._evaluation_due, checkpoint_due, self.snapshot, copies,
            self.factors,
        )  # fmt: skip
        gcd = None
        if config.evaluation.gcd_loss:
            gcd = GcdLoss(geometry.vocabulary, config.micro_batch * geometry.context)
        self.stopping: EarlyStopping | None = None
        if validation and config.evaluation.patience:
            evaluation = config.evaluation
            self.stopping = EarlyStopping(evaluation.patience, evaluation.interval, self.first_batch, losses or {})
        self.evaluate = (
            EvaluateStage(self.compute, validation, config.steps, copies, gcd, self.factors, self.stopping)
            if validation
            else None
        )
        self.save: Save | None = None
        if output and self.snapshot:
            rows = order.stored_rows(geometry) if order else {}
            record = RunRecord(
                geometry, msgspec.to_builtins(config), config.checkpoint, rows, self.scaler.on, self.guard.on
            )
            self.save = Save(self.snapshot, self.banks, output, record, self.first_batch, self.factors)

        self._memory_plan = memory_plan(config, memory, evaluates=bool(validation), saves=bool(output))
        check_allocation(self._memory_plan, self._allocated())

    def _allocate_banks(
        self, start: Checkpoint | None, initial: InitialWeights | None, order: VocabularyOrder | None
    ) -> Banks[Bank]:
        """Allocate the banks and the weights, packed weights and optimizer state that the run starts from."""
        config, geometry = self.config, self.config.geometry()
        count = config.delay + 1 + config.extra_banks
        updated = parameter_shapes(geometry, config.frozen_tensors()).keys()
        banks = [Bank(geometry, self.compute.memory.allocate_packed(updated), self.frozen) for _ in range(count)]
        random = RandomWeights(geometry, config.seed, residual_scaling=config.model.residual_scaling)
        source: InitialWeights = initial or random
        if order:
            source = OrderedWeights(source, order, geometry)
        if geometry.lora:
            self._load_frozen(source)
        versions = start.versions if start else (0,)
        published = {version: index for index, version in enumerate(versions)}
        for version, index in published.items():
            bank = banks[index]
            bank.scaler = self.scaler.start(version, start.scalers.get(version) if start else None)
            if start:
                bank.guard = start.guard
            whole = geometry.lora is None and version == versions[-1]
            tensors = bank.tensors if whole else bank.trained
            if start:
                master = self.optimizer.master if version == versions[-1] else None
                start.read_weights(version, overlaid(tensors, master))
                if order:
                    order.arrange(overlaid(tensors, master), geometry)
            else:
                adapters = lora_shapes(geometry).keys()
                random.write({name: tensor for name, tensor in tensors.items() if name in adapters})
                source.write(tensors)
                if self.factors:
                    self.factors.start(bank, source, config.seed)
        self._start_optimizer(banks[published[versions[-1]]], start, order)
        for index in published.values():  # once the frozen tensors, which the newest version has, are there
            if self.factors:
                self.factors.compute(banks[index])
            self.compute.pack_from_master(banks[index])
        return Banks(banks, config.delay, published, config.schedule.synchronous)

    def _start_optimizer(self, newest: Bank, start: Checkpoint | None, order: VocabularyOrder | None) -> None:
        """Write the optimizer's state; a checkpoint of forecasts has that of the newest version with it."""
        average = self.optimizer.average
        if start is None:
            for copy in (self.optimizer.master, average.arena if average else None):
                if copy is not None:
                    np.copyto(copy.flat, newest.arena.flat[: copy.flat.size])
            return
        state: dict[str, Mapping[str, Floats]] = dict(self._saved_state())
        if state.pop(MASTER, None) is not None:
            state[FORECAST] = newest.trained
        start.read_optimizer(state)
        if order:
            for name, arena in state.items():
                if name != BASES:
                    order.arrange(arena, self.config.geometry())

    def _saved_state(self) -> dict[str, Arena]:
        """Return the state that updates change in place, by its name in a checkpoint."""
        average, rotation = self.optimizer.average, self.optimizer.rotation
        bases = {BASES: rotation.bases} if rotation else {}
        return {**self.optimizer.state, **({AVERAGE: average.arena} if average else {}), **bases}

    def _allocate_evaluation_copies(self) -> EvaluationCopies:
        """Return the copies of weights for evaluations, which otherwise lease a version."""
        average = self.optimizer.average
        return EvaluationCopies(self._copy_of(self.optimizer.master), self._copy_of(average.arena if average else None))

    def _copy_of(self, weights: Arena | None) -> EvaluationCopy | None:
        if weights is None:
            return None
        geometry = self.config.geometry()
        updated = parameter_shapes(geometry, self.config.frozen_tensors()).keys()
        packed = self.compute.memory.allocate_packed(updated)
        return EvaluationCopy(Bank(geometry, packed, self.frozen), weights)

    def _load_frozen(self, source: InitialWeights) -> None:
        """Write the frozen tensors; those without a master are packed matrix after matrix."""
        source.write(self.frozen.arena)
        for name in self.frozen.packed_only:
            stacked = name not in architecture_of(self.config.geometry()).unstacked
            for layer, matrix in enumerate(source.matrices(name)):
                self.compute.pack_matrix(self.frozen.packed, name, layer if stacked else None, matrix)

    def memory(self) -> dict[str, int]:
        """Return the bytes of each part that is allocated for the whole run."""
        return dict(self._memory_plan)

    def _allocated(self) -> list[int]:
        """Return the allocated bytes of each part of `memory_plan`, in its order."""
        return [
            self.banks.total(lambda bank: bank.nbytes),
            self.frozen.nbytes,
            sum(arena.nbytes for arena in self._saved_state().values()),
            self.rotated.nbytes if self.rotated else 0,
            self.lanes.nbytes,
            self.gradient.nbytes,
            self.slots.total(lambda slot: slot.nbytes),
            self.scratch.total(arrays_bytes),
            self.accumulation.nbytes if self.accumulation else 0,
            self.teams.nbytes if self.teams else 0,
            self.evaluate.nbytes if self.evaluate else 0,
            self.snapshot.nbytes if self.snapshot else 0,
        ]

    def save_newest(self) -> Saved | None:
        """Write a checkpoint of the newest version, as `Save.newest` does; the training writes checkpoints."""
        assert self.save is not None, "the training was created without an output for checkpoints"
        return self.save.newest()

    def evaluate_start(self) -> Evaluation | None:
        """Evaluate the version that the run starts from; return None if no evaluation is due there."""
        if self.evaluate is None or not self.first_batch or not self._evaluation_due(self.first_batch):
            return None
        step, copies = self.first_batch, self._copies
        copies.acquire()
        weights = copies.weights.take(step) if copies.weights else self.banks.lease(step)
        return self.evaluate.evaluate(weights, copies.average.take(step) if copies.average else None)

    def stops_before(self, batch: int) -> bool:
        """Return True if the run ends before a batch; waits for the evaluation that decides it."""
        return self.stopping is not None and self._evaluation_due(batch) and self.stopping.stops_at(batch)

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches of the run in the order in which they are drawn."""
        for batch in range(self.first_batch, self.config.steps):
            if self.stops_before(batch):
                return
            yield from plan_micro_batches(batch, batch + 1, self.plan.micro_batches)

    @property
    def resources(self) -> list[Abortable]:
        """Objects that stages wait on, besides channels; a run that ends early aborts all of them."""
        all_optional = (self.accumulation, self.teams, self.snapshot, self.evaluate, self.stopping, self.rotated)
        optional = [resource for resource in all_optional if resource]
        return [self.banks, self.slots, self.lanes, self.scratch, *optional]

    def controller(self, on_change: Callable[[WorkerChange], object] | None = None) -> Controller | None:
        """Return the controller that moves threads to the bottleneck, for `start`; None unless `threads.control`.

        No stage gets more threads than can have work, or than have memory.
        """
        config, threads, shards = self.config, self.config.threads, self.shards.shards
        if not threads.control:
            return None
        in_flight = min(config.slots, self.plan.micro_batches * (config.delay + 1))
        most = {
            "embed": in_flight,
            "forward": in_flight,
            "backward": config.max_concurrent_backward,
            "reduce": shards,
            "update": threads.update if self.rotated else shards,  # each thread of a rotated update needs scratch
        }
        limits = {name: max(count, getattr(threads, name)) for name, count in most.items()}
        return Controller(limits=limits, on_change=on_change)

    def graph(self) -> Graph:
        """Return the graph of the stages, ready to be started with `resources`."""
        graph, threads, order = Graph("training"), self.config.threads, (self.config, self.plan, self.first_batch)
        whole_batch = Gather[Any](key=lambda item: item.batch, count=self.plan.micro_batches)
        all_shards = Gather[Any](key=lambda item: item.batch, count=self.shards.shards)

        def stage(name: str, fn: Callable[[Any], Any], after: Node[Any], **options: Any) -> Node[Any]:
            return graph.stage(name, fn, after=after, capacity=self.config.channel_capacity, **options)

        plan = graph.source("plan", self.micro_batches)
        draw = stage("draw", self.draw, plan, acquire=self.draw.acquire)
        embed = stage("embed", self.embed, draw, acquire=self.embed.acquire, workers=threads.embed)
        forward = stage("forward", self.forward, embed, admission=forward_order(*order), workers=threads.forward)
        backward = stage(
            "backward", self.backward, forward, acquire=self.backward.acquire,
            admission=backward_order(*order), workers=threads.backward,
        )  # fmt: skip
        collect = stage(
            "collect", self.collect, backward, acquire=self.collect.acquire, gather=whole_batch, expand=True
        )
        reduce = stage("reduce", self.reduce, collect, workers=threads.reduce)
        clip = stage("clip", self.clip, reduce, acquire=self.clip.acquire, gather=all_shards, expand=True)
        update = stage("update", self.update, clip, workers=threads.update)
        publish = stage("publish", self.publish, update, acquire=self.publish.acquire, gather=all_shards)
        reports = [publish]
        if self.evaluate:
            evaluates = lambda update: update.evaluation is not None  # noqa: E731
            reports.append(graph.stage("evaluate", self.evaluate, after=publish, when=evaluates))
        if self.save:
            saves = lambda update: update.checkpoint is not None  # noqa: E731
            reports.append(graph.stage("save", self.save, after=publish, acquire=self.save.acquire, when=saves))
        graph.sink("events", after=reports, capacity=64)
        return graph
