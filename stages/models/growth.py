"""The rules by which the tensors of a model grow with its width, so that the model computes the same function.

With a factor k the residual stream x becomes k copies side by side, [x, …, x], and so do queries, keys, values (each a
block of its own: the heads are repeated, their size stays), the heads' outputs and the hidden layer of the MLP. Every
tensor is repeated along the axes that run over such channels. A matrix reads k equal copies of its input, so it is
divided by k; the statistics of a norm over k copies are those of one. The output projection reads k copies too: an
untied one is divided as any matrix, but one that is the token embedding, whose copies must stay the embedding, is not,
and the last norm is divided instead.

Gradients. Let g be the gradient of the loss with respect to a tensor of the small model, and g' that of the grown one,
whose copies have equal values. Backward from the logits:

- Tied: the last norm gives h / k per copy to the embedding E, so its output has the gradient ``dlogits E = dh`` per
  copy, its weight and bias have ``g' = g``, and its input, through a weight γ / k, has ``dx / k`` per copy.
  Untied: the output projection E / k has ``g' = dlogitsᵀ h = g``, and everything upstream of it ``dh / k``.
- A matrix W / k from k copies of y to k copies of z, which have ``dz / k`` each, has ``g' = yᵀ dz / k = g / k`` in each
  of its k² blocks, and passes ``k · (dz / k) Wᵀ / k = dy / k`` to each copy of y. Norms, activations, rotary positions
  and attention are linear in the gradient and act on each copy (or head) alone, so the factor 1 / k runs through all
  layers: biases, norms and embeddings have ``g' = g / k`` too. The token embedding gets g / k from both of its ends.
- Weights that all heads share (norms of queries and keys) sum over k times as many heads: ``g' = k · g / k = g``.

So g' is g / k, or g for the tensors with `shared_gradient`. Adam's first moment is a mean of gradients and scales by
the same factor, the second one by its square. For blocks that are inserted nothing is known: their moments are 0.

With noise the copies differ and so do their gradients: the rules then hold for the mean over the copies, up to terms of
the order of the noise.
"""

from dataclasses import dataclass

INPUTS, OUTPUTS = -2, -1
"""The axes of a matrix (inputs, outputs)."""


@dataclass(frozen=True)
class TensorGrowth:
    """The rule of a tensor; axes are counted from the last one, -1."""

    repeated: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Axes that are repeated, each with the widths of the blocks in it, every one of which is repeated by itself."""
    summed: int | None = None
    """The axis that a product sums over, whose copies may differ by noise that sums to 0; None for no matrix."""
    divided: bool = False
    """True: the values are divided by the factor."""
    shared_gradient: bool = False
    """True: the gradient of each copy is that of the small model; False: it is divided by the factor."""
    writes_residual: bool = False
    """True: zeros in an inserted block make it the identity."""


def repeated(*blocks: int, writes_residual: bool = False) -> TensorGrowth:
    """Return the rule of a tensor with channels along its last axis: an embedding, a bias, a norm."""
    return TensorGrowth(((OUTPUTS, blocks),), writes_residual=writes_residual)


def matrix(inputs: int, *outputs: int, writes_residual: bool = False) -> TensorGrowth:
    """Return the rule of a matrix (inputs, outputs), whose columns are blocks of these widths."""
    axes = ((INPUTS, (inputs,)), (OUTPUTS, outputs))
    return TensorGrowth(axes, INPUTS, divided=True, writes_residual=writes_residual)


def last_norm(channels: int, *, tied: bool) -> TensorGrowth:
    """Return the rule of the norm whose output the output projection reads."""
    return TensorGrowth(((OUTPUTS, (channels,)),), divided=tied, shared_gradient=tied)


def output_projection(channels: int) -> TensorGrowth:
    """Return the rule of an output projection (vocabulary, channels) that is not the token embedding."""
    return TensorGrowth(((OUTPUTS, (channels,)),), OUTPUTS, divided=True, shared_gradient=True)


def shared_by_heads() -> TensorGrowth:
    """Return the rule of a tensor that all heads use: it stays as it is."""
    return TensorGrowth(shared_gradient=True)
