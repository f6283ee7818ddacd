"""Low-rank adapters (LoRA, Hu et al., 2021): which modules have one, and the tensors of all of them.

A module is a linear layer of Hugging Face's layout, such as `self_attn.q_proj`; all layers of a model have the same. A
matrix of `parameter_shapes` may hold several modules side by side. Its adapters are two tensors: the rows of `a` are
those of the modules one after another, and `b` has a block of rows and columns for each module, zeros elsewhere.
"""

from dataclasses import dataclass
from math import prod, sqrt

from threadloom.stages.models.geometry import Geometry, Lora, Shape
from threadloom.stages.models.registry import architecture_of
from threadloom.stages.models.tensor_part import TensorPart


@dataclass(frozen=True)
class AdaptedModule:
    """A linear layer of Hugging Face's layout in one layer of the model."""

    name: str
    """Name within the layer, such as `self_attn.q_proj`."""
    path: str
    """Name in the model, such as `model.layers.0.self_attn.q_proj`."""
    tensor: str
    """The matrix of `parameter_shapes` that holds it."""
    layer: int
    columns: tuple[int, int]
    """Its first column in the matrix, and the one after the last."""
    transposed: bool
    """True: the layout stores (outputs, inputs), as torch.nn.Linear; False: as GPT-2's Conv1D."""
    first_row: int = 0
    """Its first row in `a` and in `b`; 0 without an adapter."""


def field_names(tensor: str) -> tuple[str, str]:
    """Return the names of the adapters' two tensors of a matrix of `parameter_shapes`."""
    stem = tensor.removesuffix("_weight")
    return f"{stem}_a", f"{stem}_b"


def linear_modules(geometry: Geometry, layer: int = 0) -> list[AdaptedModule]:
    """Return the modules of a layer that can have an adapter, in the order of the layout."""
    architecture = architecture_of(geometry)
    shapes, modules = architecture.parameter_shapes(geometry), []
    for name, part in architecture.huggingface.parts(geometry).items():
        if part.layer == layer and len(shapes[part.tensor]) == 3:
            modules.append(_module(name.removesuffix(".weight"), part, layer, shapes[part.tensor]))
    return modules


def _module(path: str, part: TensorPart, layer: int, shape: Shape) -> AdaptedModule:
    name = path.split(f".{layer}.", 1)[1]
    return AdaptedModule(name, path, part.tensor, layer, part.columns or (0, shape[2]), part.transposed)


def adapted_modules(geometry: Geometry, layer: int = 0) -> list[AdaptedModule]:
    """Return the modules of a layer that have an adapter, with their rows."""
    lora, rows, found = geometry.lora, dict[str, int](), []
    for module in linear_modules(geometry, layer) if lora else []:
        assert lora is not None
        if module.name in lora.modules:
            first = rows.setdefault(module.tensor, 0)
            rows[module.tensor] += lora.rank
            found.append(AdaptedModule(**{**vars(module), "first_row": first}))
    return found


def lora_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return name → shape of the tensors of all adapters, in the order of the matrices that they belong to."""
    lora, shapes = geometry.lora, architecture_of(geometry).parameter_shapes(geometry)
    found: dict[str, Shape] = {}
    if lora is None:
        return found
    counts = dict[str, int]()
    for module in adapted_modules(geometry):
        counts[module.tensor] = counts.get(module.tensor, 0) + lora.rank
    for tensor, (layers, inputs, outputs) in ((name, shape) for name, shape in shapes.items() if name in counts):
        a, b = field_names(tensor)
        found |= {a: (layers, counts[tensor], inputs), b: (layers, counts[tensor], outputs)}
    return found


def lora_zeros(geometry: Geometry) -> dict[str, int]:
    """Return name → number of the elements of the adapters' `b` outside the blocks, which are zero and stay zero."""
    zeros: dict[str, int] = {}
    for module in adapted_modules(geometry):
        assert geometry.lora is not None
        name = field_names(module.tensor)[1]
        first, last = module.columns
        block = geometry.layers * geometry.lora.rank * (last - first)
        zeros[name] = zeros.get(name, prod(lora_shapes(geometry)[name])) - block
    return zeros


def lora_scale(lora: Lora) -> float:
    """Return the factor of the adapters' products: alpha / rank, or alpha / √rank (rsLoRA, Kalajdzievski, 2023)."""
    return lora.alpha / (sqrt(lora.rank) if lora.rank_stabilised else lora.rank)
