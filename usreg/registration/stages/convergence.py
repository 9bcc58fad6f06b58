"""When to stop: the slope of the loss, the time that is left, and a request from outside."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .stopping import stop_asked


@dataclass
class Convergence:
    """Follows the losses of one level.

    Attributes:
        tolerance: the smallest decrease of the loss per iteration that counts as progress.
        window: iterations over which the decrease is looked at.
        seconds: the most that the level may take; None for any time.
        losses: the loss of each iteration so far.
    """

    tolerance: float
    window: int = 10
    seconds: float | None = None
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start = time.perf_counter()

    def is_reached(self, loss: float) -> bool:
        """Whether to stop after an iteration with this loss.

        The decrease is the slope of a straight line through the last losses, so that one step back does not end all.
        """
        self.losses.append(loss)
        if stop_asked():
            return True
        if self.seconds is not None and time.perf_counter() - self._start >= self.seconds:
            return True
        if len(self.losses) <= self.window:
            return False
        return -_slope(self.losses[-self.window - 1 :]) < self.tolerance


def _slope(values: list[float]) -> float:
    """Of the straight line with the least squared distances, per step."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    rise = sum((i - middle) * (value - mean) for i, value in enumerate(values))
    return rise / sum((i - middle) ** 2 for i in range(len(values)))
