"""The peers of `benchmarks.throughput`: which are wanted, whether they can be had here, and what they compare."""

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from enum import Enum

import click
import msgspec

from benchmarks.model_sizes import Gpt2Sizes, ModelSizes
from benchmarks.protocol import FLOAT32, Side
from threadloom.stages.config import Config

INSTALL = {
    "torch": "PyTorch is not installed: run `make bench` or `pip install 'threadloom[bench]'`, or pass --no-peers",
    "jax": "JAX is not installed: run `pip install jax`, or leave out --peer jax",
}
INCOMPARABLE = "the peer has no biases and no scaled or partial rotary positions; pass --no-peers"


class Peer(Enum):
    """A program to compare with. The value is its name on the command line, and of its module in Python."""

    TORCH = "torch"
    JAX = "jax"
    LLM_C = "llm.c"


NAMES = tuple(peer.value for peer in Peer)


def parse_peers(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[Peer, ...]:
    """Return the peers of values such as "torch,jax", each once, in the order of `Peer`."""
    names = {name.strip() for value in values for name in value.split(",")}
    unknown = sorted(names.difference(NAMES))
    if unknown:
        raise click.BadParameter(f"expected some of {', '.join(NAMES)}, got {', '.join(map(repr, unknown))}")
    return tuple(peer for peer in Peer if peer.value in names)


def require_peers(peers: Collection[Peer], models: Mapping[str, ModelSizes], precisions: Collection[str]) -> None:
    """Raise ClickException if a library is not installed, or if a peer has no such model or precision.

    `models` are those of the configurations, by name.
    """
    for peer in peers:
        if peer.value in INSTALL and importlib.util.find_spec(peer.value) is None:
            raise click.ClickException(INSTALL[peer.value])
    incomparable = [name for name, model in models.items() if not model.comparable]
    if peers and incomparable:
        raise click.ClickException(f"{INCOMPARABLE}: {', '.join(incomparable)}")
    others = [name for name, model in models.items() if not isinstance(model, Gpt2Sizes)]
    alone = [peer.value for peer in (Peer.JAX, Peer.LLM_C) if peer in peers]
    if alone and others:
        raise click.ClickException(
            f"the peer {alone[0]} is a GPT-2; leave out --peer {alone[0]} for {', '.join(others)}"
        )
    if Peer.LLM_C in peers and FLOAT32 not in precisions:
        raise click.ClickException(
            f"llm.c has only float32 on a CPU, got --precision {','.join(precisions)}: add float32, or leave out "
            "--peer llm.c"
        )


def peer_sides(peers: Collection[Peer], compiled: bool) -> list[Side]:
    """Return the sides that are measured; `compiled` adds torch.compile."""
    sides = [Side.EAGER, *([Side.COMPILED] if compiled else [])] if Peer.TORCH in peers else []
    sides += [Side.JAX] if Peer.JAX in peers else []
    return sides + ([Side.LLM_C] if Peer.LLM_C in peers else [])


def computes_in(side: Side, precision: str) -> bool:
    """Return True if a peer has a precision."""
    return side is not Side.LLM_C or precision == FLOAT32


def without_clip_and_decay(config: Config) -> Config:
    """Return a configuration whose updates llm.c makes too: it does not clip, and decays vectors like matrices."""
    optimizer = msgspec.structs.replace(config.optimizer, clip=0.0, weight_decay=0.0)
    return msgspec.structs.replace(config, optimizer=optimizer)
