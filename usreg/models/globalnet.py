"""``globalnet3d``: MONAI's GlobalNet, which predicts one affine transform per pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets.regunet import AffineHead, GlobalNet
from torch import nn

from .base import IN_CHANNELS, SPATIAL_DIMS, RegistrationModel, check_at_least_one, padded_size
from .utils import register_model


class _Float32AffineHead(AffineHead):
    """The head in float32 under autocast: voxel coordinates times a half-precision matrix are off by whole voxels."""

    def forward(self, x: list[torch.Tensor], image_size: list[int]) -> torch.Tensor:
        with torch.autocast(x[0].device.type, enabled=False):
            field: torch.Tensor = super().forward([x[0].float()], image_size)
            return field


class _GlobalNet(GlobalNet):
    def build_output_block(self) -> nn.Module:
        return _Float32AffineHead(
            spatial_dims=self.spatial_dims,
            image_size=self.image_size,
            decode_size=self.decode_size,
            in_channels=self.num_channels[-1],
        )


class GlobalNetModel(RegistrationModel):
    """Affine registration. The head's 3 x 4 matrix acts on voxel coordinates (z, y, x, 1) and starts as the identity.

    Args:
        image_size: (D, H, W); the fully connected head ties the network to it.
        num_channel_initial: channels of the first level, doubled at each further one.
        depth: number of times that the image is halved.
        warp_mode, warp_padding_mode: see :class:`RegistrationModel`.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        num_channel_initial: int = 16,
        depth: int = 3,
        warp_mode: str = "bilinear",
        warp_padding_mode: str = "border",
    ) -> None:
        check_at_least_one(num_channel_initial=num_channel_initial, depth=depth)
        network = _GlobalNet(
            image_size=list(padded_size(image_size, 2**depth)),
            spatial_dims=SPATIAL_DIMS,
            in_channels=IN_CHANNELS,
            num_channel_initial=num_channel_initial,
            depth=depth,
        )
        super().__init__(network, multiple=2**depth, warp_mode=warp_mode, warp_padding_mode=warp_padding_mode)
        self.image_size = tuple(image_size)

    def field(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The displacement field (B, 3, D, H, W) of the predicted affine transform."""
        if tuple(moving.shape[2:]) != self.image_size:
            raise ValueError(
                f"this globalnet3d was built for images of {list(self.image_size)}; it got {list(moving.shape[2:])}: "
                "resample the images, or train another one with that 'image_size'"
            )
        return super().field(moving, fixed)


@register_model("globalnet3d")
def create_globalnet3d(
    image_size: Sequence[int],
    num_channel_initial: int = 16,
    depth: int = 3,
    warp_mode: str = "bilinear",
    warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Affine registration by MONAI's GlobalNet."""
    return GlobalNetModel(image_size, num_channel_initial, depth, warp_mode, warp_padding_mode)
