"""The printed and the JSON form of a certificate."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from threadloom.stages.config import printable
from threadloom.stages.tools.certify.balls import Enclosure
from threadloom.stages.tools.certify.certifying import Certificate, PrecisionErrors

SAFE = 0.01
"""Largest change of the loss, in nats per token, of a precision that is called safe: half of what seeds differ by."""
_UP, _DOWN = Context(prec=2, rounding=ROUND_CEILING), Context(prec=2, rounding=ROUND_FLOOR)


def _rounded(number: float, context: Context) -> str:
    if not math.isfinite(number):
        return "overflow"
    return f"{context.create_decimal(Decimal(number)):.1e}" if number else "0"


def upper_text(number: float) -> str:
    """Return an upper bound with two digits, rounded up."""
    return _rounded(number, _UP)


def enclosure_text(value: Enclosure) -> str:
    """Return an upper bound with two digits, rounded up; after the lower one, if that is under 80 % of it."""
    if value.lower >= 0.8 * value.upper:
        return upper_text(value.upper)
    return f"{_rounded(value.lower, _DOWN)} to {upper_text(value.upper)}"


class CertificateView:
    """The certificate as a rich renderable."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the tables."""
        c = self._certificate
        step = "" if c.step is None else f", {c.step:,} updates"
        yield Text(f"{printable(str(c.model))}: {c.geometry}{step}", "bold")
        yield Text(
            f"{c.tokens} tokens, {c.bits} bits: exact loss {c.loss:.6f}, radii of the last block up to "
            f"{upper_text(c.radius)}; {c.seconds:.1f} s"
        )
        yield Text("Largest distance to the exact numbers, rounded up, or from the lower to the upper bound:")
        for errors in c.precisions:
            yield Text(f"\n{errors.precision.value}", "bold")
            yield _table(errors)
            yield Text(f"  logits {enclosure_text(errors.head.logits)}, loss {enclosure_text(errors.head.loss)}")


def _table(errors: PrecisionErrors) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("block", "scores", "probabilities", "attention", "residual", "attention alone", "its a-priori bound"):
        table.add_column(name, justify="right", no_wrap=True)
    for n, layer in enumerate(errors.layers):
        found = (layer.scores, layer.probabilities, layer.attention, layer.residual, layer.own)
        table.add_row(str(n), *map(enclosure_text, found), upper_text(layer.own_bound))
    return table


def verdicts(certificate: Certificate) -> Iterator[str]:
    """Yield the kernels that are proven to be wrong, and one sentence for each precision: whether it is safe."""
    for errors in certificate.precisions:
        for n, layer in enumerate(errors.layers):
            if layer.own.lower > layer.own_bound:
                yield (
                    f"The attention of block {n} in {errors.precision.value} is wrong: "
                    f"{_rounded(layer.own.lower, _DOWN)} off where rounding explains {upper_text(layer.own_bound)} "
                    "at most. Please report it."
                )
        yield _verdict(certificate, errors)


def _verdict(certificate: Certificate, errors: PrecisionErrors) -> str:
    name, head, tokens = errors.precision.value, errors.head, certificate.tokens
    on = f"for this model on these {tokens} tokens"
    if math.isinf(head.loss.lower):
        return f"{name} is not safe {on}: its numbers overflow."
    if head.loss.lower <= SAFE < head.loss.upper:
        return f"Whether {name} is safe {on} is open: the balls are too wide. Hint: more --bits."
    changed = f"{head.changed} of {tokens} most likely tokens are others"
    if head.undecided:
        changed += f", and {head.undecided} could not be decided"
    if head.loss.lower > SAFE:
        least = _rounded(head.loss.lower, _DOWN)
        return f"{name} is not safe {on}: its loss is at least {least} nats off, more than {SAFE}; {changed}."
    loss = upper_text(head.loss.upper)
    return f"{name} is safe {on}: its loss is proven to be within {loss} nats of the exact one; {changed}."


def write_json(certificate: Certificate, path: Path) -> None:
    """Write the certificate as JSON; the bounds of numbers that overflow are null."""
    found: dict[str, Any] = msgspec.to_builtins(asdict(certificate), enc_hook=str)
    found["safe_below"] = SAFE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
