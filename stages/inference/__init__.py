"""A trained model: opening it, decoding, sampling, generating text, evaluating a text.

A `Decoder` is one sequence with its cache; `generate` is a loop of decoding and sampling. May import: models to step,
`stages.step.float32`.

May import: all above.
"""

from threadloom.stages.inference.choice_evaluation import (
    Accuracy as Accuracy,
    ChoiceEvaluation as ChoiceEvaluation,
    ChoiceOptions as ChoiceOptions,
    ChoiceScore as ChoiceScore,
    evaluate_choices as evaluate_choices,
)
from threadloom.stages.inference.choice_records import (
    Question as Question,
    QuestionError as QuestionError,
    read_questions as read_questions,
)
from threadloom.stages.inference.continuations import (
    encode_continuation as encode_continuation,
    likelihoods as likelihoods,
    prefix_token as prefix_token,
)
from threadloom.stages.inference.decode_threads import decode_threads as decode_threads
from threadloom.stages.inference.decoder import Decoder as Decoder, GenerationError as GenerationError
from threadloom.stages.inference.generation import (
    GenerationLimits as GenerationLimits,
    generate as generate,
    generate_text as generate_text,
)
from threadloom.stages.inference.harness_model import HarnessModel as HarnessModel
from threadloom.stages.inference.model import Model as Model, ModelError as ModelError
from threadloom.stages.inference.sampling import SamplingError as SamplingError, SamplingSettings as SamplingSettings
from threadloom.stages.inference.stored_weights import (
    DecodePrecision as DecodePrecision,
    stored_weights as stored_weights,
)
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
