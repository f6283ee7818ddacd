"""Model architectures, one file each: sizes, tensor shapes, initialisation, names in Hugging Face's layout.

May import: nothing.
"""

from threadloom.stages.models.architecture import (
    HuggingFaceLayout as HuggingFaceLayout,
    UnsupportedModelError as UnsupportedModelError,
)
from threadloom.stages.models.end_of_text import EndOfText as EndOfText
from threadloom.stages.models.geometry import (
    Geometry as Geometry,
    Lora as Lora,
    ResidueSizes as ResidueSizes,
    Shape as Shape,
    input_gradient_bytes as input_gradient_bytes,
)
from threadloom.stages.models.geometry_record import (
    geometry_from_json as geometry_from_json,
    geometry_to_json as geometry_to_json,
)
from threadloom.stages.models.grown import (
    Growth as Growth,
    Placement as Placement,
)
from threadloom.stages.models.growth import TensorGrowth as TensorGrowth
from threadloom.stages.models.huggingface import (
    huggingface_config as huggingface_config,
    huggingface_parts as huggingface_parts,
    huggingface_shapes as huggingface_shapes,
    huggingface_tied as huggingface_tied,
    huggingface_views as huggingface_views,
)
from threadloom.stages.models.initial_weights import (
    InitialWeights as InitialWeights,
    RandomWeights as RandomWeights,
)
from threadloom.stages.models.llama_geometry import (
    Llama3Scaling as Llama3Scaling,
    LlamaGeometry as LlamaGeometry,
    Rotary as Rotary,
)
from threadloom.stages.models.lora import (
    AdaptedModule as AdaptedModule,
    adapted_modules as adapted_modules,
    field_names as field_names,
    linear_modules as linear_modules,
    lora_scale as lora_scale,
    lora_shapes as lora_shapes,
)
from threadloom.stages.models.parameters import (
    NONE_FROZEN as NONE_FROZEN,
    decayed_elements as decayed_elements,
    decayed_tensors as decayed_tensors,
    derived_tensors as derived_tensors,
    initialise as initialise,
    keyed_generator as keyed_generator,
    multiplied_parameters as multiplied_parameters,
    parameter_count as parameter_count,
    parameter_shapes as parameter_shapes,
    token_embedding as token_embedding,
    trained_shapes as trained_shapes,
    whole_shapes as whole_shapes,
)
from threadloom.stages.models.registry import (
    ARCHITECTURES as ARCHITECTURES,
    architecture_of as architecture_of,
    geometry_of_huggingface as geometry_of_huggingface,
)
from threadloom.stages.models.rotary_table import (
    RotaryTable as RotaryTable,
    rotary_frequencies as rotary_frequencies,
    rotary_table as rotary_table,
)
from threadloom.stages.models.rotated import (
    Side as Side,
    basis_shapes as basis_shapes,
    rotated_sides as rotated_sides,
)
from threadloom.stages.models.vocabulary_order import (
    OrderedWeights as OrderedWeights,
    VocabularyOrder as VocabularyOrder,
    vocabulary_tensors as vocabulary_tensors,
)
