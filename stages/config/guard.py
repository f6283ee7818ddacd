"""The settings of the guard against spikes of the loss."""

import enum

from threadloom.stages.config.section import Section


class SpikeAction(enum.Enum):
    """What happens at an update whose loss or gradient norm is far above those before it."""

    OFF = "off"
    """Nothing."""
    STOP = "stop"
    """The run ends before that update, with advice."""
    SKIP = "skip"
    """The update is left out, which is reported; the next batch follows."""


class GuardConfig(Section, frozen=True, kw_only=True):
    """The guard against spikes of the loss or the gradient norm.

    An update is a spike if one of the two exceeds the mean of the last `window` updates by `deviations` times their
    standard deviation.
    """

    action: SpikeAction = SpikeAction.OFF
    """What happens at a spike. With `skip`, updates that are not finite are spikes too."""
    deviations: float = 6.0
    """Standard deviations above the mean from which on an update is a spike."""
    window: int = 128
    """Updates before, spikes among them, of which mean and standard deviation are. Nothing is a spike before half of
    them."""
    most: int = 10
    """Consecutive skipped updates with which the run ends."""
