"""Which checkpoints are worth keeping: the best ones by any metric, in its direction."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..metrics import METRIC_REGISTRY
from ..registry import did_you_mean
from .console import HIGHER_IS_BETTER, LOWER_IS_BETTER

LOSS = "val_loss"
"""The name of the validation's loss, beside the metrics."""

HIGHEST = (*HIGHER_IS_BETTER, "jac_det_min")
LOWEST = (*LOWER_IS_BETTER, LOSS, "grad_l2", "log_jac_std")
"""Metrics that can be chosen by without saying which end is good."""

DEFAULT_BEST = (LOSS, "epe")
"""What the best checkpoints are chosen by where the config does not say it; a dataset may lack it."""


@dataclass(frozen=True)
class Selection:
    """A metric, and which end of it is good.

    Attributes:
        metric: its name in a validation, or ``val_loss``.
        highest: whether more is better.
    """

    metric: str
    highest: bool

    @property
    def file(self) -> str:
        """The checkpoint that holds the best state by it."""
        return f"best_{self.metric}.pt"

    @property
    def worst(self) -> float:
        """What every value is better than."""
        return -math.inf if self.highest else math.inf

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than another."""
        return value > than if self.highest else value < than

    @classmethod
    def parse(cls, text: str, key: str = "training.best") -> Selection:
        """A selection from ``metric``, ``metric:max`` or ``metric:min``.

        Raises:
            ConfigError: there is no such metric, or its direction is not known and not given.
        """
        name, colon, direction = text.partition(":")
        base = re.sub(r"_label\d+$", "", name)
        if base != LOSS and base not in METRIC_REGISTRY:
            known = [LOSS, *METRIC_REGISTRY]
            raise ConfigError(
                f"{key} is {text!r}: there is no metric '{name}'.{did_you_mean(name, known)} Valid: {', '.join(known)}"
            )
        if colon:
            if direction not in ("max", "min"):
                raise ConfigError(f"{key} is {text!r}; behind the colon is max or min")
            return cls(name, direction == "max")
        if base in (*HIGHEST, *LOWEST):
            return cls(name, base in HIGHEST)
        raise ConfigError(
            f"{key} is {text!r}, and nothing says whether more of it is better, or less: write {name}:max or {name}:min"
        )
