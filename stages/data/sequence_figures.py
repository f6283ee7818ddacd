"""The figures of the training sequences that a person follows a run by: epochs and padding."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SequenceFigures:
    """The lengths of epochs and the padding of training sequences."""

    epochs: tuple[int, ...] = ()
    """Sequences of an epoch of each source; none if sequences are drawn at random."""
    shares: tuple[float, ...] = ()
    """Share of each of these sources among the sequences of a run."""
    padding: float | None = None
    """Fraction of the rows that are padding; None without packed documents."""

    def epochs_after(self, sequences: int) -> tuple[float, ...]:
        """Return how many epochs of each source a number of sequences are."""
        return tuple(share * sequences / count for share, count in zip(self.shares, self.epochs, strict=True))
