"""A plugin of ``usreg``: the loss ``lc2``. Its import puts that into the registry, so only registrations import it."""

from __future__ import annotations

from torch import nn

from bench.lc2 import LC2Loss
from usreg.losses import register_loss


@register_loss("lc2")
def create_lc2(radius: int = 4, **_: object) -> nn.Module:
    """LC2 of the warped image and an ultrasound image, which is the fixed one."""
    return LC2Loss(radius)
