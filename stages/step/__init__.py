"""The stages of one update, from drawing tokens to saving, and the protocol of the arithmetic that they call.

`stages.step.optimizers` has the optimizers; `stages.step.float32` and `stages.step.bits16` implement `Compute`.

May import: all above.
"""

from threadloom.stages.step.backward import Backward as Backward
from threadloom.stages.step.compute import (
    Compute as Compute,
    Version as Version,
    backward_with_embeddings as backward_with_embeddings,
    needs_blocks as needs_blocks,
    skip_blocks as skip_blocks,
)
from threadloom.stages.step.derived_embedding import EmbeddingFactors as EmbeddingFactors
from threadloom.stages.step.divided_passes import DividedPasses as DividedPasses
from threadloom.stages.step.dropout import (
    EmbeddingDropout as EmbeddingDropout,
    block_rates as block_rates,
    has_dropout as has_dropout,
)
from threadloom.stages.step.early_stopping import EarlyStopping as EarlyStopping
from threadloom.stages.step.evaluate import (
    EvaluateStage as EvaluateStage,
    Validation as Validation,
    ValidationLoss as ValidationLoss,
)
from threadloom.stages.step.evaluation_copy import (
    EvaluationCopies as EvaluationCopies,
    EvaluationCopy as EvaluationCopy,
)
from threadloom.stages.step.forward import (
    Draw as Draw,
    Embed as Embed,
    Forward as Forward,
    plan_micro_batches as plan_micro_batches,
)
from threadloom.stages.step.gcd_loss import GcdLoss as GcdLoss
from threadloom.stages.step.gradient_noise import NoiseMeter as NoiseMeter
from threadloom.stages.step.reducer import (
    Collect as Collect,
    Gradient as Gradient,
    Reduce as Reduce,
    TrainingDiverged as TrainingDiverged,
    plan_shards as plan_shards,
)
from threadloom.stages.step.rotated_update import RotatedUpdate as RotatedUpdate, rotated_stage as rotated_stage
from threadloom.stages.step.saving import (
    CheckpointOutput as CheckpointOutput,
    CheckpointSnapshot as CheckpointSnapshot,
    RunRecord as RunRecord,
    Save as Save,
    due_every as due_every,
    never as never,
)
from threadloom.stages.step.team import Member as Member, Teams as Teams
from threadloom.stages.step.update import Clip as Clip, Publish as Publish
from threadloom.stages.step.windows import Windows as Windows
