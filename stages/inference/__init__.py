"""A trained model: opening it, decoding, sampling, generating text, evaluating a text.

A `Decoder` is one sequence with its cache; `generate` is a loop of decoding and sampling. May import: models to step,
`stages.step.float32`.

May import: all above.
"""

from threadloom.stages.inference.decoder import Decoder, GenerationError
from threadloom.stages.inference.generation import generate
from threadloom.stages.inference.model import Model, ModelError
from threadloom.stages.inference.sampling import SamplingError, SamplingSettings
from threadloom.stages.inference.text_evaluation import TextEvaluation, evaluate_text

__all__ = [
    "Decoder",
    "GenerationError",
    "Model",
    "ModelError",
    "SamplingError",
    "SamplingSettings",
    "TextEvaluation",
    "evaluate_text",
    "generate",
]
