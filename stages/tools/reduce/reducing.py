"""Rounding the token embedding, or reducing its rank: all ways compared, one of them written."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint import ExportedModel, export_model
from threadloom.stages.config import ConfigError
from threadloom.stages.inference import Model
from threadloom.stages.lattice import (
    Basis,
    Grid,
    Rounding,
    best_scale,
    entropy_bits,
    low_rank,
    measured_scale,
    shortest_vector,
    step_of_bits,
    weighted_error,
)
from threadloom.stages.storage import INTEGERS_FILE, StoredFormat, encode_integers, integers_times, require_absent
from threadloom.stages.tools.reduce.calibration import Calibration, Measured

REPORT_FILE = "reduction.json"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """The model to reduce, the text to measure on, and the new folder."""

    run: Path
    out: Path
    base: Path | None
    texts: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class Figures:
    """One way to replace the embedding."""

    name: str
    error: float
    """Mean squared change of a logit: over all rows of the embedding, and the hidden states of the text."""
    size: int
    """Bytes of the embedding as integers in compressed form, or of the two factors in float32."""
    bits: float | None
    """Entropy of the integers, per weight; None for factors."""
    loss: float
    """On the held-out text, in nats per token."""


@dataclass(frozen=True)
class Reducer:
    """A model that was opened and measured."""

    request: Request
    measured: Measured
    calibration: Calibration

    @classmethod
    def open(cls, request: Request, *, rank: int | None, bits: float | None) -> "Reducer":
        """Check the request, open the model and measure it. Raises `ConfigError` and the errors of `Model.open`."""
        if (rank is None) == (bits is None):
            got = "neither" if rank is None else "both"
            raise ConfigError("threadloom reduce", "one of --bits and --rank", got, hint="for both, reduce twice")
        require_absent(request.out)
        model = Model.open(request.run, request.base, full_context=True)
        measured = Measured(model, request.texts, request.run, request.tokens)
        if rank is not None and rank > model.geometry.channels:
            raise ConfigError("--rank", f"at most {model.geometry.channels}, the channels of the model", str(rank))
        return cls(request, measured, measured.calibrate())

    def round(self, bits: float, chosen: Rounding) -> Iterator[str]:
        """Round the embedding in all ways to integers; yield lines of the report.

        All are compared with one step, that of plain rounding. The chosen one is written with the best step for it.
        """
        wte, metric = self._wte, self.calibration.metric
        step = step_of_bits(wte, bits)
        yield from self._first_lines(f"step {step:.6g}")
        shortest = shortest_vector(metric)
        yield (
            f"{'':>12}  two points of the grid differ by {'' if shortest.exact else 'at most '}"
            f"{step * shortest.distance**0.5:.4g} in a logit where they differ least"
        )
        grids, found = {rounding: Grid(metric, rounding) for rounding in Rounding}, list[Figures]()
        for rounding, grid in grids.items():
            found.append(self._rounded(rounding.value, grid, step)[0])
            yield self._line(found[-1])
        plain, best = (
            measured_scale(wte, metric, grids[chosen], step),
            best_scale(wte, metric, grids[chosen], step, bits),
        )
        yield (
            f"{'':>12}  {chosen.value} with at most {bits:g} bits is best with {best.step / step:.3f} of the step: "
            f"error of a logit {best.error**0.5:.4g} instead of {plain.error**0.5:.4g}, bits {best.bits:.3f} instead "
            f"of {plain.bits:.3f} on a sample"
        )
        figures, written, content = self._rounded(f"{chosen.value} scaled", grids[chosen], best.step)
        found.append(figures)
        yield self._line(figures)
        yield self._write(written, found, chosen.value, {INTEGERS_FILE: content})

    def _rounded(self, name: str, grid: Grid, step: float) -> tuple[Figures, Floats, bytes]:
        """Return the figures of one way to round, the rounded embedding, and its integers in compressed form."""
        wte, integers = self._wte, grid.round(self._wte, step)
        rounded, content = integers_times(integers, step), encode_integers(integers, step)
        error = weighted_error(wte, rounded, self.calibration.metric)
        return Figures(name, error, len(content), entropy_bits(integers), self.measured.loss(rounded)), rounded, content

    def lower_rank(self, rank: int, chosen: Basis) -> Iterator[str]:
        """Replace the embedding by products of a rank, and write the chosen one; yield lines of the report."""
        wte, metric = self._wte, self.calibration.metric
        yield from self._first_lines(f"rank {rank} of {wte.shape[1]}")
        found: list[Figures] = []
        for basis in Basis:
            factors = low_rank(wte, metric, self.calibration.frequency, rank, basis)
            product = (factors.tall @ factors.wide).astype(np.float32)
            size = 4 * (factors.tall.size + factors.wide.size)
            error = weighted_error(wte, product, metric)
            found.append(Figures(basis.value, error, size, None, self.measured.loss(product)))
            yield f"{self._line(found[-1])}, {factors.kept:.4f} of the weighted energy"
            if basis is chosen:
                written = product
        yield self._write(written, found, chosen.value, {})

    @property
    def _wte(self) -> Floats:
        return self.measured.weights.wte

    def _first_lines(self, what: str) -> Iterator[str]:
        calibration, wte = self.calibration, self._wte
        yield (
            f"{self.measured.model.path}: {what}, metric of {calibration.tokens:,} tokens, loss of "
            f"{self.measured.held_out_tokens:,} held-out tokens"
        )
        yield f"{'as it is':>12}: {wte.nbytes:,} bytes in float32, loss {self._loss_before:.4f}"

    @property
    def _loss_before(self) -> float:
        return self.measured.loss(self._wte)

    @staticmethod
    def _line(figures: Figures) -> str:
        bits = "" if figures.bits is None else f", {figures.bits:.3f} bits per weight"
        return (
            f"{figures.name:>12}: {figures.size:,} bytes{bits}, error of a logit {figures.error**0.5:.4g}, "
            f"loss {figures.loss:.4f}"
        )

    def _write(self, embedding: Floats, found: list[Figures], chosen: str, extra: dict[str, bytes]) -> str:
        model, weights = self.measured.model, self.measured.weights._replace(wte=embedding)
        report = {
            "tokens": self.calibration.tokens,
            "held_out_tokens": self.measured.held_out_tokens,
            "bytes_before": self._wte.nbytes,
            "loss_before": self._loss_before,
            "written": chosen,
            "figures": [asdict(figures) for figures in found],
        }
        content = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        tensors = {name: tensor for name, tensor in weights._asdict().items() if tensor.size}
        exported = ExportedModel(
            model.tokenizer_folder, tensors, model.geometry, model.tokenizer.end_of_text, model.base
        )
        further = extra | {REPORT_FILE: content}
        files = export_model(exported, self.request.out, StoredFormat.FLOAT32, further=further)
        return f"{self.request.out}: {chosen}, {', '.join(files)}"
