"""The frame that all models share: a network gives a field, the field warps the moving image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .warp import check_modes, warp

SPATIAL_DIMS = 3
"""Of a network for volumes, which is the default; 2 for slices."""
IMAGES = 2
"""The moving and the fixed one, which a network gets stacked."""


class RegistrationModel(nn.Module):
    """(moving, fixed) -> (warped, ddf), by way of a network that maps the stacked pair to a field.

    A network that halves its input several times takes only sizes that are multiples of ``multiple``. Other sizes are
    padded with zeros at their far end, as the convolutions do at every border, and the field is cropped again.

    A network for slices (``spatial_dims`` 2) sees the plane of images of one voxel along an axis, and moves nothing
    along it. It takes 2-D images (B, C, H, W) too, whose fields are (B, 2, H, W).

    Args:
        network: maps (B, 2 C, D, H, W), the channels of the moving image and then those of the fixed one, to a field
            (B, 3, D, H, W) in voxels, order z, y, x; in 2-D (B, 2 C, H, W) to (B, 2, H, W), order y, x.
        multiple: what the network's sizes must be a multiple of.
        spatial_dims: of the network, 3 or 2.
        image_channels: C, the channels of an image.
        warp_mode: ``bilinear`` or ``nearest`` (no gradient to the field).
        warp_padding_mode: ``border``, ``zeros`` or ``reflection``.

    Raises:
        ValueError: an unknown warp mode, no channel, or another number of dimensions.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        multiple: int = 1,
        spatial_dims: int = SPATIAL_DIMS,
        image_channels: int = 1,
        warp_mode: str = "bilinear",
        warp_padding_mode: str = "border",
    ) -> None:
        super().__init__()
        check_modes(warp_mode, warp_padding_mode)
        check_spatial_dims(spatial_dims)
        check_at_least_one(image_channels=image_channels)
        self.network = network
        self.multiple = multiple
        self.spatial_dims = spatial_dims
        self.image_channels = image_channels
        self.warp_mode = warp_mode
        self.warp_padding_mode = warp_padding_mode

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Register a batch of pairs.

        Args:
            moving: (B, C, D, H, W), intensities in [0, 1]; for a network in 2-D (B, C, H, W) too.
            fixed: (B, C, D, H, W), intensities in [0, 1], on the same grid.

        Returns:
            warped (B, C, D, H, W), the moving image on the fixed grid, and ddf (B, 3, D, H, W) in voxels, order z, y,
            x, with ``warped(x) = moving(x + ddf(x))``; both float32, under autocast too. Along an axis of one voxel,
            such as that of a slice (B, C, 1, H, W), the displacement is 0.

        Raises:
            ValueError: the two are not both (B, C, D, H, W) of one shape, or volumes for a network in 2-D.
        """
        channels, dims = self.image_channels, moving.dim() - 2
        if moving.shape != fixed.shape or dims not in {SPATIAL_DIMS, self.spatial_dims} or moving.shape[1] != channels:
            either = "" if self.spatial_dims == SPATIAL_DIMS else f", or (B, {channels}, H, W)"
            raise ValueError(
                f"moving has shape {tuple(moving.shape)} and fixed {tuple(fixed.shape)}; both must be the same "
                f"(B, {channels}, D, H, W){either}: resample one onto the other's grid first; 'image_channels' of the "
                f"model, here {channels}, is the number of channels of an image"
            )
        ddf = _without_thin_axes(self.field(moving, fixed).float())
        return warp(moving, ddf, self.warp_mode, self.warp_padding_mode), ddf

    def field(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The displacement field (B, 3, D, H, W) in voxels, order z, y, x; of 2-D images (B, 2, H, W), order y, x."""
        if moving.dim() - 2 == self.spatial_dims:
            return self.network_field(moving, fixed)
        if 1 not in moving.shape[2:]:
            raise ValueError(
                f"this network is one for slices (spatial_dims 2), and the images are volumes, of "
                f"{list(moving.shape[2:])}: train one with the 'image_size' of volumes, and without 'spatial_dims'"
            )
        across = moving.shape.index(1, 2)
        field = self.network_field(moving.squeeze(across), fixed.squeeze(across)).unsqueeze(across)
        before, behind = field.split([across - 2, SPATIAL_DIMS + 1 - across], dim=1)
        return torch.cat([before, torch.zeros_like(field[:, :1]), behind], dim=1)

    def network_field(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The field of images with as many axes as the network has: (B, C, D, H, W), or (B, C, H, W) in 2-D."""
        size = moving.shape[2:]
        pads = [padded - length for padded, length in zip(padded_size(size, self.multiple), size, strict=True)]
        pair = F.pad(torch.cat([moving, fixed], dim=1), [n for pad in reversed(pads) for n in (0, pad)])
        field: torch.Tensor = self.network(pair)
        for axis, length in enumerate(size, start=2):
            field = field.narrow(axis, 0, length)
        return field


def padded_size(size: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The smallest size, at least ``size`` in each axis, that a network with strides of ``multiple`` in all can take.

    Each axis is a multiple of ``multiple``. The last one has at least two multiples where the others have one only:
    normalisation over the coarsest level needs more than one voxel there.
    """
    padded = [-(-length // multiple) * multiple for length in size]
    if multiple > 1 and all(length == multiple for length in padded):
        padded[-1] += multiple
    return tuple(padded)


def _without_thin_axes(ddf: torch.Tensor) -> torch.Tensor:
    """The field with no displacement along axes of one voxel: nothing lies there that could decide about it."""
    if 1 not in ddf.shape[2:]:
        return ddf
    extended = ddf.new_tensor([float(length > 1) for length in ddf.shape[2:]])
    return ddf * extended.reshape(1, -1, *[1] * len(extended))


def network_channels(image_channels: int, in_channels: int | None = None) -> int:
    """The channels that a network gets, those of the moving and of the fixed image.

    Args:
        image_channels: of an image.
        in_channels: the number as a config gives it, None where it does not.

    Raises:
        ValueError: no channel, or ``in_channels`` is another number.
    """
    check_at_least_one(image_channels=image_channels)
    wanted = IMAGES * image_channels
    if in_channels not in (None, wanted):
        each = "" if image_channels == 1 else f" of {image_channels} channels each"
        raise ValueError(
            f"in_channels is {in_channels}; it must be {wanted}, the moving and the fixed image{each}; leave it out"
        )
    return wanted


def check_spatial_dims(spatial_dims: int) -> None:
    """Raise ValueError unless a network is one for volumes or one for slices."""
    if spatial_dims not in (2, SPATIAL_DIMS):
        raise ValueError(f"spatial_dims is {spatial_dims}; it must be 3, for volumes, or 2, for slices")


def field_channels(spatial_dims: int, out_channels: int = SPATIAL_DIMS) -> int:
    """The components of a field that a network returns, as many as it has dimensions.

    Args:
        spatial_dims: 3 or 2.
        out_channels: the number as a config gives it, which is 3, of the model's field, or that of the network.

    Raises:
        ValueError: another number of dimensions or of components.
    """
    check_spatial_dims(spatial_dims)
    if out_channels not in (SPATIAL_DIMS, spatial_dims):
        raise ValueError(f"out_channels is {out_channels}; it must be 3, the field's components z, y and x")
    return spatial_dims


def check_at_least_one(**values: int) -> None:
    """Raise ValueError for a number of channels, levels or steps below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")


def zero_init(layer: nn.Module) -> None:
    """Set all weights of a layer to zero, so that a network that ends in it starts with the identity, a zero field."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
