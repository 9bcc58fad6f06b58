"""``globalnet3d``: MONAI's GlobalNet, which predicts one affine transform per pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.nets.regunet import GlobalNet
from torch import nn

from .base import (
    SPATIAL_DIMS,
    RegistrationModel,
    check_at_least_one,
    check_spatial_dims,
    network_channels,
    padded_size,
    zero_init,
)
from .checkpointing import checkpoint_parts
from .utils import register_model

PACE = 0.1
"""Half extents per unit of the head's output: at a rate of 1e-3 a step of Adam is small beside a voxel."""


class _ScaledAffineHead(nn.Module):
    """An affine map from the coarsest features, in units in which one learning rate fits all models.

    The map acts on coordinates that run from -1 to 1 along each axis, from the middle of the volume. It is the identity
    plus a weighted mean of the features. A step of an optimizer then moves the corners by about :data:`PACE` times its
    learning rate, in half extents, whatever the size of the image and of the network. MONAI's head sums all features,
    thousands of them, and multiplies by voxel coordinates up to the size: at 1e-3 it leaves the image within an epoch.

    Float32 under autocast: coordinates times a half-precision matrix are off by whole voxels.

    Args:
        size: (D, H, W) of the field, or (H, W).
        features: number of features, channels times voxels.
    """

    grid: torch.Tensor
    half_extent: torch.Tensor

    def __init__(self, size: Sequence[int], features: int) -> None:
        super().__init__()
        self.features = features
        self.dims = len(size)
        self.affine = nn.Linear(features, self.dims * (self.dims + 1))
        zero_init(self.affine)
        half = [(length - 1) / 2 for length in size]
        axes = [torch.linspace(-1, 1, length) if length > 1 else torch.zeros(1) for length in size]
        grid = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.ones(*size)])
        self.register_buffer("grid", grid, persistent=False)  # (4, D, H, W): z, y, x, 1; in 2-D (3, H, W)
        self.register_buffer("half_extent", torch.tensor(half), persistent=False)

    def forward(self, x: list[torch.Tensor], image_size: list[int]) -> torch.Tensor:
        """The field (B, 3, D, H, W) or (B, 2, H, W) in voxels, of the features x[0]."""
        with torch.autocast(x[0].device.type, enabled=False):
            features = x[0].float().flatten(1)
            weights = self.affine.weight / self.features
            matrix = PACE * nn.functional.linear(features, weights, self.affine.bias)
            matrix = matrix.reshape(-1, self.dims, self.dims + 1)
            ddf = torch.einsum("bij,j...->bi...", matrix, self.grid)
            return ddf * self.half_extent.reshape(1, -1, *[1] * self.dims)


class _GlobalNet(GlobalNet):
    def build_output_block(self) -> nn.Module:
        return _ScaledAffineHead(self.image_size, math.prod(self.decode_size) * self.num_channels[-1])


def normalise_each_sample(network: nn.Module) -> None:
    """Put group normalisation over all channels in place of batch normalisation.

    The coarsest features have few voxels, and all of them go into one affine map: running statistics of a batch or two
    put that map elsewhere in evaluation than in training. A sample's own statistics are the same in both.
    """
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))


def plane_of(image_size: Sequence[int]) -> list[int]:
    """The size of a slice in its plane.

    Raises:
        ValueError: it is the size of a volume.
    """
    size = list(image_size)
    if 1 not in size:
        raise ValueError(f"spatial_dims is 2, for slices, and image_size {size} is that of volumes: leave it out")
    size.remove(1)
    return size


class GlobalNetModel(RegistrationModel):
    """Affine registration, which starts as the identity; see :class:`_ScaledAffineHead`.

    Args:
        image_size: (D, H, W); the fully connected head ties the network to it.
        num_channel_initial: channels of the first level, doubled at each further one.
        depth: number of times that the image is halved.
        checkpointing: see :func:`usreg.models.checkpointing.checkpoint_parts`.
        spatial_dims: 3 for volumes, 2 for slices; in training, by ``image_size``.
        image_channels: channels of an image; in training, those of the dataset's.
        warp_mode, warp_padding_mode: see :class:`RegistrationModel`.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        num_channel_initial: int = 16,
        depth: int = 3,
        checkpointing: bool = False,
        spatial_dims: int = SPATIAL_DIMS,
        image_channels: int = 1,
        warp_mode: str = "bilinear",
        warp_padding_mode: str = "border",
    ) -> None:
        check_spatial_dims(spatial_dims)
        check_at_least_one(num_channel_initial=num_channel_initial, depth=depth)
        size = list(image_size) if spatial_dims == len(image_size) else plane_of(image_size)
        network = _GlobalNet(
            image_size=list(padded_size(size, 2**depth)),
            spatial_dims=spatial_dims,
            in_channels=network_channels(image_channels),
            num_channel_initial=num_channel_initial,
            depth=depth,
        )
        normalise_each_sample(network)
        if checkpointing:
            checkpoint_parts([*network.encode_convs, network.bottom_block])
        super().__init__(
            network,
            multiple=2**depth,
            spatial_dims=spatial_dims,
            image_channels=image_channels,
            warp_mode=warp_mode,
            warp_padding_mode=warp_padding_mode,
        )
        self.network_size = tuple(size)

    def network_field(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The displacement field of the predicted affine transform."""
        if tuple(moving.shape[2:]) != self.network_size:
            raise ValueError(
                f"this globalnet3d was built for images of {list(self.network_size)}; it got {list(moving.shape[2:])}: "
                "resample the images, or train another one with that 'image_size'"
            )
        return super().network_field(moving, fixed)


@register_model("globalnet3d")
def create_globalnet3d(
    image_size: Sequence[int],
    num_channel_initial: int = 16,
    depth: int = 3,
    checkpointing: bool = False,
    spatial_dims: int = SPATIAL_DIMS,
    image_channels: int = 1,
    warp_mode: str = "bilinear",
    warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Affine registration by MONAI's GlobalNet."""
    return GlobalNetModel(
        image_size,
        num_channel_initial,
        depth,
        checkpointing,
        spatial_dims,
        image_channels,
        warp_mode,
        warp_padding_mode,
    )
