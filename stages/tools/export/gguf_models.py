"""The architectures in GGUF: metadata, and the tensors that differ from those of Hugging Face's layout.

llama.cpp rotates pairs of neighbouring dimensions in the architectures `llama` and `smollm3`, so the rows of their
queries and keys are permuted head by head; in `qwen2` and `qwen3` it rotates by halves, as this package does.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models import Geometry, LlamaGeometry, Rotary, UnsupportedModelError, rotary_frequencies

if TYPE_CHECKING:
    import gguf

Floats = NDArray[np.float32]


class GgufModel(Protocol):
    """One architecture in GGUF; an instance of each is in `GGUF_MODELS`."""

    def name(self, geometry: Any) -> str:
        """Return `general.architecture`; raises UnsupportedModelError for a variant that llama.cpp does not compute."""

    def write_metadata(self, writer: "gguf.GGUFWriter", geometry: Any) -> None:
        """Add the sizes of the model."""

    def converted(self, name: str, tensor: Floats, geometry: Any) -> Floats:
        """Return a tensor of Hugging Face's layout as GGUF stores it, possibly a view."""

    def further_tensors(self, geometry: Any) -> dict[str, Floats]:
        """Return name in GGUF → tensor that Hugging Face's layout lacks."""


class GgufGpt2:
    """GPT-2, whose matrices GGUF stores as (outputs, inputs)."""

    def name(self, geometry: Geometry) -> str:
        """Return `gpt2`."""
        return "gpt2"

    def write_metadata(self, writer: "gguf.GGUFWriter", geometry: Geometry) -> None:
        """Add the sizes of the model."""
        _write_common(writer, geometry)
        writer.add_layer_norm_eps(1e-5)

    def converted(self, name: str, tensor: Floats, geometry: Geometry) -> Floats:
        """Return matrices of layers transposed."""
        return tensor.T if ".h." in name and tensor.ndim == 2 else tensor

    def further_tensors(self, geometry: Geometry) -> dict[str, Floats]:
        """Return no tensors."""
        return {}


class GgufLlama:
    """The Llama family: `llama`, `smollm3`, `qwen2` and `qwen3`."""

    def name(self, geometry: LlamaGeometry) -> str:
        """Return the architecture of llama.cpp that computes the variant."""
        g = geometry
        every_fourth = frozenset(range(3, g.layers, 4))
        if g.rotary.dimensions not in (None, g.head_size):
            raise _unsupported("partial rotary positions")
        if g.layers_without_rotary not in (frozenset(), every_fourth):
            raise _unsupported("layers without rotary positions other than every fourth")
        if g.qk_norm:
            if g.qkv_bias or g.mlp_bias or g.layers_without_rotary:
                raise _unsupported("a norm of queries and keys with biases, or with layers without rotary positions")
            return "qwen3"
        if g.layers_without_rotary:
            return "smollm3"
        if g.qkv_bias and not g.attn_proj_bias and not g.mlp_bias and g.head_size * g.heads == g.channels:
            return "qwen2"
        return "llama"

    def write_metadata(self, writer: "gguf.GGUFWriter", geometry: LlamaGeometry) -> None:
        """Add the sizes of the model and its rotary positions."""
        import gguf

        _write_common(writer, geometry)
        writer.add_head_count_kv(geometry.kv_heads)
        writer.add_key_length(geometry.head_size)
        writer.add_value_length(geometry.head_size)
        writer.add_layer_norm_rms_eps(geometry.epsilon)
        writer.add_vocab_size(geometry.vocabulary)
        writer.add_rope_dimension_count(geometry.head_size)
        writer.add_rope_freq_base(geometry.rotary.theta)
        if geometry.rotary.linear_factor != 1.0:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(geometry.rotary.linear_factor)

    def converted(self, name: str, tensor: Floats, geometry: LlamaGeometry) -> Floats:
        """Return the rows of queries and keys with the two halves of each head interleaved, where llama.cpp does so."""
        heads = {"q_proj": geometry.heads, "k_proj": geometry.kv_heads}.get(name.split(".")[-2])
        if heads is None or self.name(geometry).startswith("qwen"):
            return tensor
        halves = tensor.reshape(heads, 2, geometry.head_size // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    def further_tensors(self, geometry: LlamaGeometry) -> dict[str, Floats]:
        """Return the divisors of the frequencies in Llama 3's scaling."""
        if geometry.rotary.llama3 is None:
            return {}
        return {"rope_freqs.weight": _llama3_divisors(geometry)}


def _write_common(writer: "gguf.GGUFWriter", geometry: Geometry) -> None:
    writer.add_context_length(geometry.context)
    writer.add_embedding_length(geometry.channels)
    writer.add_block_count(geometry.layers)
    writer.add_feed_forward_length(geometry.hidden)
    writer.add_head_count(geometry.heads)


def _llama3_divisors(geometry: LlamaGeometry) -> Floats:
    """Return the number that each frequency is divided by (D / 2,), from 1 to `factor`, by its wavelength."""
    unscaled = rotary_frequencies(Rotary(geometry.rotary.theta), geometry.head_size)
    return (unscaled / rotary_frequencies(geometry.rotary, geometry.head_size)).astype(np.float32)


def _unsupported(got: str) -> UnsupportedModelError:
    hint = "export it as a folder in Hugging Face's layout"
    return UnsupportedModelError("a variant that llama.cpp computes", got, "GGUF cannot express it", hint)


GGUF_MODELS: Mapping[str, GgufModel] = {"gpt2": GgufGpt2(), "llama": GgufLlama()}
"""`Geometry.architecture` → its description."""
