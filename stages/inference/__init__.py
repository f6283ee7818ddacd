"""A trained model: opening, sampling, generating, evaluating a text.

May import: models to step.
"""

from threadloom.stages.inference.evaluate_text import assess
from threadloom.stages.inference.generation import generate
from threadloom.stages.inference.model import Model
from threadloom.stages.inference.sampling import SamplingSettings

__all__ = [
    "Model",
    "SamplingSettings",
    "assess",
    "generate",
]
