"""The choice of low-rank adapters (LoRA), with the rules of PEFT for the names of modules."""

from collections.abc import Iterable

from threadloom.stages.config.errors import ConfigError
from threadloom.stages.config.section import Section
from threadloom.stages.config.trained import whole_tensors
from threadloom.stages.models import (
    Geometry,
    Lora,
    architecture_of,
    huggingface_parts,
    huggingface_tied,
    linear_modules,
    lora_shapes,
    parameter_shapes,
)

ALL_LINEAR = "all-linear"
"""Target that stands for all linear layers but the output projection."""


class LoraConfig(Section, frozen=True, kw_only=True):
    """Low-rank adapters of linear layers (Hu et al., 2021). The model itself is frozen; its adapters are trained.

    The names of modules are those of Hugging Face's layout. As in PEFT, a name such as `q_proj` stands for all modules
    whose name is that or ends in a dot and that.
    """

    rank: int = 0
    """Rank of every adapter, r in PEFT. 0: no adapters, all tensors are trained that `train.*` selects."""
    alpha: float = 16.0
    """The adapters' products are multiplied by alpha / rank."""
    rslora: bool = False
    """Multiply by alpha / √rank instead (rsLoRA, Kalajdzievski, 2023)."""
    targets: tuple[str, ...] = ()
    """Linear layers with an adapter, or `all-linear`. Empty: q_proj and v_proj, in a GPT-2 c_attn, as in PEFT."""
    dropout: float = 0.0
    """Probability with which an element of an adapter's input is set to 0 in training."""
    save: tuple[str, ...] = ()
    """Modules that are trained themselves, such as `embed_tokens` or `norm`: `modules_to_save` in PEFT."""
    init: str = ""
    """Folder of adapters in PEFT's layout whose weights the run starts from (`train --init`). Empty: random ones."""

    def lora(self, geometry: Geometry) -> Lora | None:
        """Return the adapters of a model, None without; raises ConfigError for a target that is no linear layer."""
        if not self.rank:
            self._require_defaults()
            return None
        names = self.targets or architecture_of(geometry).huggingface.default_targets
        saved = self._saved(geometry)  # modules that are trained themselves have no adapter, as in PEFT
        known = {module.path: module.name for module in linear_modules(geometry) if module.tensor not in saved}
        modules = frozenset(name for target in names for name in _matching(target, known))
        return Lora(self.rank, self.alpha, modules, self.rslora, self.dropout)

    def frozen_tensors(self, geometry: Geometry) -> frozenset[str]:
        """Return the names of the tensors that are frozen: all of the model but those in `save`.

        `geometry` may have the adapters or not. Raises ConfigError for a name in `save` that matches no module.
        """
        return frozenset(parameter_shapes(geometry)) - lora_shapes(geometry).keys() - self._saved(geometry)

    def _saved(self, geometry: Geometry) -> frozenset[str]:
        tensors = huggingface_parts(geometry) | huggingface_tied(geometry)
        modules = {name: name.rpartition(".")[0] for name in tensors}
        saved: set[str] = set()
        for wanted in self.save:
            names = {name for name, module in modules.items() if _ends_in(module, wanted)}
            if not names:
                raise ConfigError(
                    "lora.save",
                    expected="modules of the model, such as embed_tokens, lm_head or norm",
                    got=wanted,
                    hint=f"the modules are {_known(_short(module) for module in modules.values())}",
                )
            saved |= whole_tensors("lora.save", wanted, names, geometry)
        return frozenset(saved)

    def _require_defaults(self) -> None:
        """Raise ConfigError for a setting that has no effect without adapters."""
        for name in ("alpha", "rslora", "targets", "dropout", "save", "init"):
            value = getattr(self, name)
            if value != getattr(LoraConfig(), name):
                raise ConfigError(
                    f"lora.{name}",
                    expected="lora.rank above 0",
                    got=f"lora.{name} = {value!r} without adapters",
                    hint="set lora.rank, for example lora.rank=16",
                )


def _matching(target: str, known: dict[str, str]) -> set[str]:
    """Return the names, within a layer, of the modules of the first layer that a target matches."""
    found = {name for path, name in known.items() if target == ALL_LINEAR or _ends_in(path, target)}
    if not found:
        raise ConfigError(
            "lora.targets",
            expected=f"linear layers of the model that are not in lora.save, or {ALL_LINEAR}",
            got=target,
            hint=f"they are {_known(map(_short, known.values()))}; embeddings, norms and the output projection can be "
            "trained as a whole by lora.save",
        )
    return found


def _ends_in(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _known(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
