"""``voxelmorph3d``: MONAI's VoxelMorph network, with or without integration of a velocity field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.voxelmorph import VoxelMorphUNet
from torch import nn
from torch.nn import functional as F

import usreg_kernels as uk
from usreg_kernels.dispatch import is_worthwhile

from .base import SPATIAL_DIMS, RegistrationModel, check_at_least_one, check_spatial_dims, network_channels, zero_init
from .checkpointing import checkpoint_parts
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
        velocity: (B, 3, D, H, W), voxels per unit time, order z, y, x; or (B, 2, H, W), order y, x.
        steps: number of squarings, 1 or more; 0 returns the velocity itself as the displacement.

    Returns:
        The same shape, in voxels.
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
        unet_out_channels: channels of the U-Net's result.
        channels: channels of the U-Net in pairs, down and up, fine to coarse; each pair halves the image once.
        final_conv_channels: channels of the convolutions behind the U-Net.
        half_res: integrate at half the resolution, which takes an eighth of the memory and gives smoother fields.
        checkpointing: see :func:`usreg.models.checkpointing.checkpoint_parts`.
        spatial_dims: 3 for volumes, 2 for slices; in training, by ``image_size``.
        image_channels: channels of an image; in training, those of the dataset's.
        warp_mode, warp_padding_mode: see :class:`RegistrationModel`.

    Raises:
        ValueError: a negative number of steps, or channels that are not in pairs.
    """

    def __init__(
        self,
        integration_steps: int = 7,
        unet_out_channels: int = UNET_OUT_CHANNELS,
        channels: Sequence[int] = CHANNELS,
        final_conv_channels: Sequence[int] = FINAL_CONV_CHANNELS,
        half_res: bool = False,
        checkpointing: bool = False,
        spatial_dims: int = SPATIAL_DIMS,
        image_channels: int = 1,
        warp_mode: str = "bilinear",
        warp_padding_mode: str = "border",
    ) -> None:
        check_spatial_dims(spatial_dims)
        if integration_steps < 0:
            raise ValueError(f"integration_steps is {integration_steps}; it must be 0 (no integration) or more")
        if len(channels) < 2 or len(channels) % 2:
            raise ValueError(f"channels is {list(channels)}; it must be pairs of channels, down and up, of each level")
        smallest = min([*channels, *final_conv_channels, unet_out_channels])
        check_at_least_one(channels=smallest)
        backbone: Any = VoxelMorphUNet(
            spatial_dims=spatial_dims,
            in_channels=network_channels(image_channels),
            unet_out_channels=unet_out_channels,
            channels=tuple(channels),
            final_conv_channels=tuple(final_conv_channels),
        )
        zero_init(backbone.net[-1].final_conv_out)
        if checkpointing:
            checkpoint_parts(backbone.net)
        multiple = 2 ** (len(channels) // 2)
        super().__init__(
            backbone,
            multiple=multiple,
            spatial_dims=spatial_dims,
            image_channels=image_channels,
            warp_mode=warp_mode,
            warp_padding_mode=warp_padding_mode,
        )
        self.integration_steps = integration_steps
        self.half_res = half_res

    def network_field(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The displacement field in voxels, integrated."""
        velocity = super().network_field(moving, fixed)
        if not self.half_res:
            return integrate(velocity, self.integration_steps)
        size = velocity.shape[2:]
        half = rescaled(velocity, [-(-length // 2) for length in size])
        return rescaled(integrate(half, self.integration_steps), size)


def rescaled(field: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A field (B, n, spatial), n 2 or 3, in voxels on another number of voxels of the same box, and in those voxels."""
    factors = [new / old for new, old in zip(size, field.shape[2:], strict=True)]
    mode = "trilinear" if len(factors) == SPATIAL_DIMS else "bilinear"
    resized = F.interpolate(field.float(), size=tuple(size), mode=mode, align_corners=False)
    return resized * resized.new_tensor(factors).reshape(1, -1, *[1] * len(factors))


@register_model("voxelmorph3d")
def create_voxelmorph3d(
    in_channels: int | None = None,
    unet_out_channels: int = UNET_OUT_CHANNELS,
    channels: Sequence[int] = CHANNELS,
    final_conv_channels: Sequence[int] = FINAL_CONV_CHANNELS,
    integration_steps: int = 7,
    half_res: bool = False,
    checkpointing: bool = False,
    spatial_dims: int = SPATIAL_DIMS,
    image_channels: int = 1,
    warp_mode: str = "bilinear",
    warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Deformable, by default diffeomorphic, registration by MONAI's VoxelMorph network; any image size works."""
    network_channels(image_channels, in_channels)
    return VoxelMorphModel(
        integration_steps,
        unet_out_channels,
        channels,
        final_conv_channels,
        half_res,
        checkpointing,
        spatial_dims,
        image_channels,
        warp_mode,
        warp_padding_mode,
    )
