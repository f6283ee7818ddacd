"""A trained model: opening it, decoding, sampling, generating text, evaluating a text.

A `Decoder` is one sequence with its cache; `generate` is a loop of decoding and sampling. May import: models to step,
`stages.step.float32`.

May import: all above.
"""

from threadloom.stages.inference.decoder import Decoder as Decoder, GenerationError as GenerationError
from threadloom.stages.inference.generation import (
    GenerationLimits as GenerationLimits,
    generate as generate,
    generate_text as generate_text,
)
from threadloom.stages.inference.model import Model as Model, ModelError as ModelError
from threadloom.stages.inference.sampling import SamplingError as SamplingError, SamplingSettings as SamplingSettings
from threadloom.stages.inference.text_evaluation import (
    DocumentLoss as DocumentLoss,
    Loss as Loss,
    TextEvaluation as TextEvaluation,
    TextOptions as TextOptions,
    evaluate_text as evaluate_text,
)
from threadloom.stages.inference.token_scores import (
    ScoredTokens as ScoredTokens,
    TokenScores as TokenScores,
    score_tokens as score_tokens,
)
