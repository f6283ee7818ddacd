"""The windows of the evaluations of a run."""

from loguru import logger

from threadloom.stages.config import ResolvedConfig
from threadloom.stages.data import Dataset, EvaluationChoice, TokenFile, prepare_sets
from threadloom.stages.step import Validation
from threadloom.stages.storage import RunDirectory


def validation_windows(config: ResolvedConfig, data: Dataset, run: RunDirectory) -> Validation:
    """Return the windows of the validation split, and of the named validation sets, which are encoded here once.

    Raises as `prepare_sets`.
    """

    def windows(tokens: TokenFile) -> EvaluationChoice:
        return EvaluationChoice(config.data, tokens, config.batch_size, config.micro_batch)

    evaluation = config.evaluation
    files = prepare_sets(evaluation.sets, config.data, data, run.data)
    for name, tokens in files.items():
        logger.info("validation set {}: {:,} tokens", name, len(tokens))
    split = windows(data.validation)
    return Validation(
        split(evaluation.batches),
        split(evaluation.final_batches),
        {name: windows(tokens)(evaluation.batches) for name, tokens in files.items()},
    )
