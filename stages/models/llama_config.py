"""config.json of the Llama family in Hugging Face's layout, in the old and the new spelling of rotary positions."""

from typing import Any

import msgspec

from threadloom.stages.models.architecture import UnsupportedModelError
from threadloom.stages.models.huggingface_config import require_positive, require_sizes, require_values
from threadloom.stages.models.llama_families import FAMILIES
from threadloom.stages.models.llama_geometry import Llama3Scaling, LlamaGeometry, Rotary

FULL_ATTENTION, _SLIDING = "full_attention", "sliding_attention"
_ROTARY_HINT = (
    'if the model was trained without it, remove "rope_scaling" and set "max_position_embeddings" to the length that '
    "it was trained with; otherwise use a model with rope_type default, linear or llama3"
)


class _RotaryConfig(msgspec.Struct):
    """`rope_scaling` of the old spelling, or `rope_parameters` of the new one."""

    rope_type: str | None = None
    type: str | None = None
    """`rope_type` in files of 2023."""
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    full_attention: Any = None
    """Parameters of one kind of layers, in a dictionary per kind."""
    sliding_attention: Any = None


class _LlamaConfig(msgspec.Struct):
    """The keys that change the computation; those without a default are required."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10_000.0
    partial_rotary_factor: float | None = None
    rope_scaling: _RotaryConfig | None = None
    rope_parameters: _RotaryConfig | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 0
    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int = 0
    layer_types: list[str] | None = None
    quantization_config: Any = None


def geometry_of(config: bytes) -> LlamaGeometry:
    """Return the geometry that a config.json describes; see `HuggingFaceLayout.geometry`."""
    raw = msgspec.json.decode(config, type=dict[str, Any])
    family = FAMILIES[raw["model_type"]]
    found = msgspec.convert({**family.defaults, **raw, **family.fixed}, _LlamaConfig)
    if found.num_key_value_heads is None:
        found.num_key_value_heads = found.num_attention_heads
    _check(found)
    head_size = found.head_dim or found.hidden_size // found.num_attention_heads
    return LlamaGeometry(
        vocabulary=found.vocab_size,
        context=found.max_position_embeddings,
        layers=found.num_hidden_layers,
        heads=found.num_attention_heads,
        channels=found.hidden_size,
        kv_heads=found.num_key_value_heads,
        head_size=head_size,
        mlp_width=found.intermediate_size,
        epsilon=found.rms_norm_eps,
        rotary=_rotary(found, head_size),
        layers_without_rotary=_layers_without_rotary(found),
        tied=found.tie_word_embeddings,
        qkv_bias=family.qkv_bias or found.attention_bias,
        attn_proj_bias=found.attention_bias,
        mlp_bias=found.mlp_bias,
        qk_norm=family.qk_norm,
    )


def _check(config: _LlamaConfig) -> None:
    """Raise UnsupportedModelError for sizes that cannot be, and for a variant that the kernels do not compute."""
    if config.quantization_config is not None:
        raise UnsupportedModelError(
            "weights that are not quantised",
            "quantization_config",
            "quantised weights are not supported",
            "use the original model, or save it with `model.dequantize().save_pretrained(directory)`",
        )
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    require_sizes(config, (*sizes, "num_key_value_heads", "max_position_embeddings"))
    require_values(config, {"hidden_act": ("silu", "swish")}, config.model_type)  # two names of one function
    require_positive("rms_norm_eps", config.rms_norm_eps)
    _check_heads(config)
    _check_window(config)


def _check_heads(config: _LlamaConfig) -> None:
    heads, kv_heads, channels = config.num_attention_heads, config.num_key_value_heads or 0, config.hidden_size
    cause = "the file was edited"
    if heads % kv_heads:
        expected = f"num_key_value_heads that divides num_attention_heads = {heads}"
        raise UnsupportedModelError(expected, f"{kv_heads}", cause)
    if config.head_dim is None and channels % heads:
        expected = f"head_dim, or hidden_size that num_attention_heads = {heads} divides"
        raise UnsupportedModelError(expected, f"hidden_size = {channels}", cause)
    if config.head_dim is not None:
        require_sizes(config, ("head_dim",))
    if (config.head_dim or channels // heads) % 2:
        expected = "an even size of the heads, for rotary positions by halves"
        raise UnsupportedModelError(expected, f"{config.head_dim or channels // heads}", cause)


def _check_window(config: _LlamaConfig) -> None:
    """Raise UnsupportedModelError if a layer's attention is limited to a window shorter than the context."""
    if unknown := sorted(set(config.layer_types or ()) - {FULL_ATTENTION, _SLIDING}):
        expected = f'layer_types "{FULL_ATTENTION}"'
        raise UnsupportedModelError(expected, f'"{unknown[0]}"', "an unsupported kind of attention")
    window = config.sliding_window if config.use_sliding_window else None
    if window is None or window >= config.max_position_embeddings:
        return
    if config.layer_types is None:
        sliding = config.num_hidden_layers > config.max_window_layers
    else:
        sliding = _SLIDING in config.layer_types
    if sliding:
        raise UnsupportedModelError(
            "attention without a sliding window",
            f"sliding_window = {window} with max_position_embeddings = {config.max_position_embeddings}",
            "attention here sees all previous tokens",
            f'set "max_position_embeddings" to {window} in config.json: in shorter texts the window has no effect',
        )


def _rotary(config: _LlamaConfig, head_size: int) -> Rotary:
    """Return the rotary positions. As in transformers, `rope_scaling` replaces `rope_parameters`."""
    nothing = _RotaryConfig()
    found = next((rope for rope in (config.rope_scaling, config.rope_parameters) if rope not in (None, nothing)), None)
    rope = found or nothing
    theta = require_positive("rope_theta", config.rope_theta if rope.rope_theta is None else rope.rope_theta)
    if rope.full_attention is not None or rope.sliding_attention is not None:
        raise UnsupportedModelError(
            "rope_parameters of all layers",
            "one dictionary per kind of layer",
            "an unsupported kind of rotary positions",
        )
    kind = rope.rope_type or rope.type or "default"
    dimensions = _rotated_dimensions(config, rope, head_size)
    if kind == "default":
        return Rotary(theta, dimensions)
    if kind == "linear":
        return Rotary(theta, dimensions, linear_factor=require_positive("factor", rope.factor))
    if kind == "llama3":
        return Rotary(theta, dimensions, llama3=_llama3_scaling(config, rope))
    raise UnsupportedModelError(
        'rope_type = "default" or "linear" or "llama3"',
        f'"{kind}"',
        "an unsupported scaling of rotary positions",
        _ROTARY_HINT,
    )


def _rotated_dimensions(config: _LlamaConfig, rope: _RotaryConfig, head_size: int) -> int | None:
    """Return the number of dimensions that `partial_rotary_factor` rotates; None: all."""
    factor = config.partial_rotary_factor if rope.partial_rotary_factor is None else rope.partial_rotary_factor
    if factor is None or factor == 1.0:
        return None
    dimensions = int(head_size * require_positive("partial_rotary_factor", factor))
    if dimensions % 2 or not 2 <= dimensions <= head_size:
        expected = f"partial_rotary_factor that rotates an even number of the {head_size} dimensions of a head"
        raise UnsupportedModelError(expected, f"{factor} and {dimensions} dimensions", "the file was edited")
    return None if dimensions == head_size else dimensions


def _llama3_scaling(config: _LlamaConfig, rope: _RotaryConfig) -> Llama3Scaling:
    if rope.original_max_position_embeddings is None:
        rope.original_max_position_embeddings = config.max_position_embeddings
    require_sizes(rope, ("original_max_position_embeddings",))
    low = require_positive("low_freq_factor", rope.low_freq_factor)
    return Llama3Scaling(
        factor=require_positive("factor", rope.factor),
        low_freq_factor=low,
        high_freq_factor=require_positive("high_freq_factor", rope.high_freq_factor, least=low),
        original_context=rope.original_max_position_embeddings,
    )


def _layers_without_rotary(config: _LlamaConfig) -> frozenset[int]:
    """Return the layers that `no_rope_layers` (1: rotary, 0: none) or `no_rope_layer_interval` leaves without."""
    layers, interval = config.num_hidden_layers, config.no_rope_layer_interval
    if config.no_rope_layers is not None:
        if len(config.no_rope_layers) != layers:
            expected = f"no_rope_layers with {layers} values"
            raise UnsupportedModelError(expected, f"{len(config.no_rope_layers)}", "the file was edited")
        return frozenset(layer for layer, rotary in enumerate(config.no_rope_layers) if not rotary)
    return frozenset(range(interval - 1, layers, interval)) if interval > 0 else frozenset()
