"""The frame that all models share: a network gives a field, the field warps the moving image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .warp import check_modes, warp

SPATIAL_DIMS = 3
IN_CHANNELS = 2


class RegistrationModel(nn.Module):
    """(moving, fixed) -> (warped, ddf), by way of a network that maps the stacked pair to a field.

    A network that halves its input several times takes only sizes that are multiples of ``multiple``. Other sizes are
    padded with zeros at their far end, as the convolutions do at every border, and the field is cropped again.

    Args:
        network: maps (B, 2, D, H, W), moving and fixed, to a field (B, 3, D, H, W) in voxels, order z, y, x.
        multiple: what the network's sizes must be a multiple of.
        warp_mode: ``bilinear`` or ``nearest`` (no gradient to the field).
        warp_padding_mode: ``border``, ``zeros`` or ``reflection``.

    Raises:
        ValueError: an unknown warp mode.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        multiple: int = 1,
        warp_mode: str = "bilinear",
        warp_padding_mode: str = "border",
    ) -> None:
        super().__init__()
        check_modes(warp_mode, warp_padding_mode)
        self.network = network
        self.multiple = multiple
        self.warp_mode = warp_mode
        self.warp_padding_mode = warp_padding_mode

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Register a batch of pairs.

        Args:
            moving: (B, 1, D, H, W), intensities in [0, 1].
            fixed: (B, 1, D, H, W), intensities in [0, 1], on the same grid.

        Returns:
            warped (B, 1, D, H, W), the moving image on the fixed grid, and ddf (B, 3, D, H, W) in voxels, order z, y,
            x, with ``warped(x) = moving(x + ddf(x))``; both float32, under autocast too.

        Raises:
            ValueError: the two are not both (B, 1, D, H, W) of one shape.
        """
        if moving.shape != fixed.shape or moving.dim() != 2 + SPATIAL_DIMS or moving.shape[1] != 1:
            raise ValueError(
                f"moving has shape {tuple(moving.shape)} and fixed {tuple(fixed.shape)}; both must be the same "
                "(B, 1, D, H, W): resample one onto the other's grid first"
            )
        ddf = self.field(moving, fixed).float()
        return warp(moving, ddf, self.warp_mode, self.warp_padding_mode), ddf

    def field(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The displacement field (B, 3, D, H, W) in voxels, order z, y, x."""
        depth, height, width = moving.shape[2:]
        pads = [
            p - size for p, size in zip(padded_size(moving.shape[2:], self.multiple), moving.shape[2:], strict=True)
        ]
        pair = F.pad(torch.cat([moving, fixed], dim=1), [0, pads[2], 0, pads[1], 0, pads[0]])
        field: torch.Tensor = self.network(pair)
        return field[:, :, :depth, :height, :width]


def padded_size(size: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The smallest size, at least ``size`` in each axis, that a network with strides of ``multiple`` in all can take.

    Each axis is a multiple of ``multiple``. The last one has at least two multiples where the others have one only:
    normalisation over the coarsest level needs more than one voxel there.
    """
    padded = [-(-length // multiple) * multiple for length in size]
    if multiple > 1 and all(length == multiple for length in padded):
        padded[-1] += multiple
    return tuple(padded)


def check_in_channels(in_channels: int) -> None:
    """Raise ValueError unless the network takes the two channels it is given."""
    if in_channels != IN_CHANNELS:
        raise ValueError(f"in_channels is {in_channels}; it must be 2, the moving and the fixed image")


def check_out_channels(out_channels: int) -> None:
    """Raise ValueError unless the network returns the three components of a field."""
    if out_channels != SPATIAL_DIMS:
        raise ValueError(f"out_channels is {out_channels}; it must be 3, the field's components z, y and x")


def check_at_least_one(**values: int) -> None:
    """Raise ValueError for a number of channels, levels or steps below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")


def zero_init(layer: nn.Module) -> None:
    """Set all weights of a layer to zero, so that a network that ends in it starts with the identity, a zero field."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
