"""The report of an evaluation, as text and as JSON."""

import json
import math
from typing import Any

from threadloom.stages.inference import Loss, TextEvaluation

_ROWS = 40
"""Documents that a table shows at most."""


def text_report(score: TextEvaluation) -> str:
    """Return a table of the documents, if there are several, and the line of the whole text."""
    line = (
        f"loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.3f}, "
        f"{score.bits_per_character:.4f} bits per character, {score.bits_per_byte:.4f} bits per byte "
        f"({score.tokens:,} tokens, {score.seconds:.1f} s)"
    )
    if len(score.documents) < 2:
        return line
    rows = [f"{'loss':>9} {'bits/byte':>10} {'tokens':>12}  document"]
    rows += [
        f"{document.loss:>9.4f} {document.bits_per_byte:>10.4f} {document.tokens:>12,}  {document.name}"
        for document in score.documents[:_ROWS]
    ]
    if len(score.documents) > _ROWS:
        rows.append(f"... {len(score.documents) - _ROWS:,} more; --json has all")
    return "\n".join([*rows, line])


def json_report(score: TextEvaluation) -> str:
    """Return the figures of the whole text and of each document as JSON."""
    documents = [{"name": document.name, **_figures(document)} for document in score.documents]
    content = {**_figures(score), "context": score.context, "stride": score.stride, "seconds": score.seconds}
    return json.dumps({**content, "documents": documents}, indent=1)


def _figures(score: Loss) -> dict[str, Any]:
    return {
        "loss": score.loss,
        "perplexity": score.perplexity if math.isfinite(score.perplexity) else None,  # JSON has no infinity
        "bits_per_character": score.bits_per_character,
        "bits_per_byte": score.bits_per_byte,
        "nats": score.nats,
        "tokens": score.tokens,
        "characters": score.size.characters,
        "bytes": score.size.bytes,
    }
