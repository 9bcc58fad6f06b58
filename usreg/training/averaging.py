"""An exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """A copy of a network whose weights follow the network's, each step by ``1 - decay`` of the way.

    The first steps follow faster, by the decay ``(1 + n) / (10 + n)`` after n steps, so that the random weights of the
    beginning are soon forgotten. Buffers of floating-point numbers, such as running statistics, are averaged too.

    Args:
        network: begins the average; the copy lies on its device.
        decay: between 0 and 1; about ``1 / (1 - decay)`` steps count.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Follow the network after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for own, new in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.lerp_(new.to(own.dtype), 1 - decay)
            else:
                own.copy_(new)

    def state_dict(self) -> dict[str, object]:
        """The average and its number of steps."""
        return {"steps": self.steps, "model": self.network.state_dict()}
