"""A trained model: opening, sampling, generating, evaluating a text.

May import: models to step.
"""

from threadloom.stages.inference.generation import generate
from threadloom.stages.inference.model import Model
from threadloom.stages.inference.sampling import SamplingSettings
from threadloom.stages.inference.text_evaluation import evaluate_text

__all__ = [
    "Model",
    "SamplingSettings",
    "evaluate_text",
    "generate",
]
