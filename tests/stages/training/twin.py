"""Training with the float64 reference, on the sequences and with the declared staleness of a training of the product.

`assert_equals_twin` compares a whole run with it. The bounds follow from the roundings of all its updates: the whole
reference training is disturbed, so that they contain how later updates amplify the errors of earlier ones.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from tests import reference
from tests.error_bounds import IN_FLOAT32, Storage, with_bounds
from tests.kernels.bits16.formats import Format
from tests.kernels.comparison import assert_close
from tests.reference import AdamW, Ids, Tensors
from tests.rounding_marks import rounded_sum
from tests.stages.training.oracle import oracle_of
from threadloom.stages.config import DelayCorrection, ResolvedConfig, ScheduleKind
from threadloom.stages.memory.graph_items import Event, Update
from threadloom.stages.training.training import Training

SMALL_STEPS = ("schedule.kind=constant", "schedule.warmup=0", "optimizer.eps=1e-4")
"""Settings with which rounding errors stay small: the gradient of the keys' bias is exactly 0, and with the usual
epsilon of 1e-8 its rounding error would become a whole step. The kernel's tests cover that epsilon."""


@dataclass
class Twin:
    """Results of the reference's training."""

    versions: list[Tensors]
    """Every version of the weights, as forward and backward read it."""
    weights: Tensors
    """The newest weights, which differ from the newest version if that is a forecast."""
    m: Tensors
    v: Tensors
    forecasts: bool
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def tensors(self, kept: Iterable[int]) -> Tensors:
        """Return losses, norms, moments, and the changes of the versions `kept` since the start.

        To compare changes is stricter than to compare weights.
        """
        named: Tensors = {"losses": np.array(self.losses), "norms": np.array(self.norms)}
        for version in kept:
            weights = self.versions[version]
            named |= {f"change to version {version} of {n}": weights[n] - self.versions[0][n] for n in self.m}
        trained = {name: self.weights[name] for name in self.m}
        for moment, tensors in (("m", self.m), ("v", self.v), ("weights", trained)):
            if moment != "weights" or self.forecasts:
                named |= {f"{moment} of {name}": tensor for name, tensor in tensors.items()}
        return named


def sequences(training: Training, batch: int) -> tuple[Ids, Ids]:
    """Return ids and targets (B, T) of a whole batch of the data source."""
    config, source = training.config, training.draw._source
    rows, length = config.micro_batch * config.model.context, config.model.context
    ids, targets = (np.empty((training.plan.micro_batches, rows), np.int32) for _ in range(2))
    for micro in range(training.plan.micro_batches):
        source.fill(batch, micro, ids[micro], targets[micro])
    return ids.reshape(-1, length), targets.reshape(-1, length)


def train_reference(training: Training, weights: Tensors, packed: Format | None = None) -> Twin:
    """Train the reference on the same sequences: batch k reads version max(k - τ, 0), rounded to `packed`.

    The first `schedule.synchronous` batches have no delay.
    """
    config = training.config
    s = config.optimizer
    assert config.schedule.kind is ScheduleKind.CONSTANT and not config.schedule.warmup
    oracle = oracle_of(config)
    frozen = config.frozen_tensors()
    zero = {name: np.zeros_like(tensor) for name, tensor in weights.items() if name not in frozen}
    twin = Twin([weights], weights, zero, zero, config.delay_correction.forecasts)
    for batch in range(config.steps):
        ids, targets = sequences(training, batch)
        read = twin.versions[_version(config, batch)]
        read = packed.packed_weights(read) if packed else read
        record = oracle.forward(read, ids)
        losses = reference.cross_entropy_forward(record.logits, targets)
        counted = max(int(np.count_nonzero(targets >= 0)), 1)
        grads = oracle.backward(read, record, targets, 1.0 / counted)
        if s.clip_value:
            grads = {name: np.clip(gradient, -s.clip_value, s.clip_value) for name, gradient in grads.items()}
        clipped, norm = reference.clip_by_global_norm({name: grads[name] for name in zero}, s.clip)
        _update(twin, config, clipped, batch, oracle.decayed)
        twin.losses.append(float(rounded_sum(losses)) / counted)
        twin.norms.append(norm)
    return twin


def _version(config: ResolvedConfig, batch: int) -> int:
    """Return the version that a batch reads; the delay begins with 1 after the synchronous batches, and grows to τ."""
    late = min(config.delay, max(batch - config.schedule.synchronous + 1, 0))
    return max(batch - late, 0)


def _update(twin: Twin, config: ResolvedConfig, clipped: Tensors, batch: int, decayed: tuple[str, ...]) -> None:
    """Append the version that follows from the gradient of a batch, tensor by tensor."""
    s, correction = config.optimizer, config.delay_correction
    made: Tensors = {}
    version: Tensors = {}
    m, v = dict(twin.m), dict(twin.v)
    for name in clipped:
        factor, decay = _group(config, name, s.weight_decay if name in decayed else 0.0)
        constants = AdamW(factor * _rate(config, batch), _beta1(config, batch), s.beta2, s.eps, decay, (name,))
        w, g, m1, v1 = ({name: tensors[name]} for tensors in (twin.weights, clipped, twin.m, twin.v))
        if correction in (DelayCorrection.NONE, DelayCorrection.WARMUP):
            weights, new_m, new_v = reference.adamw(w, g, m1, v1, batch + 1, constants)
            version |= weights
        else:
            ahead = config.delay if batch + 1 >= config.schedule.synchronous else 0
            horizon = factor * sum(_rate(config, batch + 1 + later) for later in range(ahead))
            late = batch >= config.schedule.synchronous
            lead, forecast_lead = (s.lead if correction.has_lead else 0.0, s.forecast_lead) if late else (0.0, 0.0)
            sums = _sums_of_weights(config, batch), _sums_of_weights(config, batch - 1)
            update = reference.delayed_adamw(w, g, m1, v1, batch + 1, constants, lead, horizon, forecast_lead, sums)
            weights, new_m, new_v = update.weights, update.m, update.v
            version |= update.forecast if twin.forecasts else weights
        made, m, v = made | weights, m | new_m, v | new_v
    twin.m, twin.v = m, v
    twin.weights = {**twin.weights, **made}
    twin.versions.append({**twin.versions[-1], **version})


def _beta1(config: ResolvedConfig, batch: int) -> float:
    """Return the decay rate of the first moment, which may be another one in synchronous updates."""
    s = config.optimizer
    return s.beta1 if batch >= config.schedule.synchronous else s.synchronous_beta1


def _sums_of_weights(config: ResolvedConfig, batch: int) -> float:
    """Return the sum of the weights of all gradients in the first moment after a batch: that of gradients of 1."""
    moment = 0.0
    for earlier in range(batch + 1):
        moment += (1.0 - _beta1(config, earlier)) * (1.0 - moment)
    return moment


def _group(config: ResolvedConfig, name: str, decay: float) -> tuple[float, float]:
    """Return the factor of the learning rate and the weight decay of a tensor, as the last groups with it say."""
    factor = 1.0
    for group in config.optimizer.groups:
        if fnmatchcase(name, group.match):
            factor = factor if group.lr is None else group.lr
            decay = decay if group.decay is None else group.decay
    return factor, decay


def _rate(config: ResolvedConfig, batch: int) -> float:
    """Return the learning rate of a constant schedule, with PipeMare's warm-up for the delay."""
    if config.delay_correction is not DelayCorrection.WARMUP:
        return config.optimizer.lr
    p = 1.0 - min(batch / config.schedule.delay_warmup, 1.0)
    return config.optimizer.lr / math.pow(config.delay + 1, p)


def random_weights(config: ResolvedConfig, spread: float = 0.2) -> Tensors:
    """Return weights of the size that those of a model in training have, and no tensor of zeros or ones."""
    return oracle_of(config).random_tensors(np.random.default_rng(config.seed), spread)


def start_from(training: Training, weights: Tensors) -> None:
    """Replace version 0 by the reference's weights."""
    with training.banks.lease(0) as lease:
        for name, view in lease.bank.tensors.items():
            view[...] = weights[name]
        for name in training.frozen.packed_only:
            tensor = weights[name].astype(np.float32)
            for layer in range(len(tensor)) if tensor.ndim == 3 else [None]:
                matrix = tensor if layer is None else tensor[layer]
                training.compute.pack_matrix(training.frozen.packed, name, layer, matrix)
        training.compute.pack_from_master(lease.bank)
        if training.optimizer.master is not None:
            np.copyto(training.optimizer.master.flat, lease.bank.arena.flat)


def start_of(training: Training) -> Tensors:
    """Return version 0 of the weights."""
    with training.banks.lease(0) as lease:
        return {name: view.astype(np.float64) for name, view in lease.bank.tensors.items()}


@dataclass(frozen=True)
class Expectation:
    """Results of the reference's training, and how far a correct one may be from them."""

    start: Tensors
    tensors: Tensors
    bounds: dict[str, float]


def expectation(training: Training, storage: Storage = IN_FLOAT32, packed: Format | None = None) -> Expectation:
    """Return the results of the reference's training from the weights of a training that has not begun."""
    start, steps = start_of(training), training.config.steps
    kept = range(max(steps - training.config.delay, 0), steps + 1)
    return Expectation(start, *with_bounds(lambda: train_reference(training, start, packed).tensors(kept), storage))


def assert_expected(training: Training, events: Iterable[Event], expected: Expectation) -> None:
    """Compare losses, gradient norms, both moments and the kept versions of a finished training."""
    updates = [event for event in events if isinstance(event, Update)]
    found: Tensors = {
        "losses": np.array([update.loss for update in updates]),
        "norms": np.array([update.grad_norm for update in updates]),
    }
    steps = training.config.steps
    for version in range(max(steps - training.config.delay, 0), steps + 1):
        with training.banks.lease(version) as lease:
            for name, weight in lease.bank.arena.items():
                found[f"change to version {version} of {name}"] = weight.astype(np.float64) - expected.start[name]
    for moment, arena in training.optimizer.state.items():
        found |= {f"{moment} of {name}": tensor.astype(np.float64) for name, tensor in arena.items()}
    assert found.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert_close(found[name], tensor, expected.bounds[name], name)
