"""``voxelmorph3d``: MONAI's VoxelMorph network, with or without integration of a velocity field."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.voxelmorph import VoxelMorphUNet
from torch import nn

import usreg_kernels as uk
from usreg_kernels.dispatch import is_worthwhile

from .base import IN_CHANNELS, SPATIAL_DIMS, RegistrationModel, zero_init
from .utils import register_model
from .warp import warp

UNET_OUT_CHANNELS = 32
CHANNELS = (16, 32, 32, 32, 32, 32)
FINAL_CONV_CHANNELS = (16, 16)
"""The sizes of the VoxelMorph paper (Balakrishnan et al., IEEE TMI 2019), which MONAI's VoxelMorph defaults to."""


def integrate(velocity: torch.Tensor, steps: int) -> torch.Tensor:
    """The displacement after unit time of a stationary velocity field, by scaling and squaring in float32.

    Beyond the border the velocity goes on as it is there; MONAI's ``DVF2DDF`` would stop it, and tear the field.

    Args:
        velocity: (B, 3, D, H, W), voxels per unit time, order z, y, x.
        steps: number of squarings, 1 or more; 0 returns the velocity itself as the displacement.

    Returns:
        (B, 3, D, H, W) in voxels, order z, y, x.
    """
    if is_worthwhile("integrate_velocity", velocity.device.type):
        return uk.integrate_velocity(velocity, steps=steps, padding_mode="border")
    with torch.autocast(velocity.device.type, enabled=False):
        ddf = velocity.to(torch.promote_types(velocity.dtype, torch.float32)) / 2**steps
        for _ in range(steps):
            ddf = ddf + warp(ddf, ddf)
        return ddf


class VoxelMorphModel(RegistrationModel):
    """VoxelMorph. With ``integration_steps`` the field is that of a diffeomorphism, up to discretisation.

    Args:
        integration_steps: squarings that turn the network's velocity field into a displacement; 0 takes the network's
            output as the displacement.
        warp_mode, warp_padding_mode: see :class:`RegistrationModel`.

    Raises:
        ValueError: a negative number of steps.
    """

    def __init__(
        self, integration_steps: int = 7, warp_mode: str = "bilinear", warp_padding_mode: str = "border"
    ) -> None:
        if integration_steps < 0:
            raise ValueError(f"integration_steps is {integration_steps}; it must be 0 (no integration) or more")
        backbone: Any = VoxelMorphUNet(
            spatial_dims=SPATIAL_DIMS,
            in_channels=IN_CHANNELS,
            unet_out_channels=UNET_OUT_CHANNELS,
            channels=CHANNELS,
            final_conv_channels=FINAL_CONV_CHANNELS,
        )
        zero_init(backbone.net[-1].final_conv_out)
        multiple = 2 ** (len(CHANNELS) // 2)  # the channels come in pairs, down and up; each pair halves once
        super().__init__(backbone, multiple=multiple, warp_mode=warp_mode, warp_padding_mode=warp_padding_mode)
        self.integration_steps = integration_steps

    def field(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The displacement field (B, 3, D, H, W) in voxels, integrated."""
        return integrate(super().field(moving, fixed), self.integration_steps)


@register_model("voxelmorph3d")
def create_voxelmorph3d(
    integration_steps: int = 7,
    warp_mode: str = "bilinear",
    warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Deformable, by default diffeomorphic, registration by MONAI's VoxelMorph network; any image size works."""
    return VoxelMorphModel(integration_steps, warp_mode, warp_padding_mode)
