"""``unetreg3d``: MONAI's UNet with a convolution that reads the field from its features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.nets.unet import UNet
from torch import nn

from .base import SPATIAL_DIMS, RegistrationModel, check_at_least_one, field_channels, network_channels, zero_init
from .checkpointing import checkpoint_parts
from .utils import register_model


@register_model("unetreg3d")
def create_unetreg3d(
    in_channels: int | None = None,
    out_channels: int = 3,
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    strides: Sequence[int] = (2, 2, 2, 2),
    num_res_units: int = 2,
    checkpointing: bool = False,
    spatial_dims: int = SPATIAL_DIMS,
    image_channels: int = 1,
    warp_mode: str = "bilinear",
    warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Deformable registration by MONAI's UNet.

    Args:
        in_channels: twice ``image_channels``, the moving and the fixed image; it need not be given.
        out_channels: 3, the components of the field; in 2-D 2 is good too.
        channels: channels of each level, fine to coarse.
        strides: downsampling between them, one fewer than ``channels``; any image size works.
        num_res_units: residual convolutions per level; 0 for plain ones.
        checkpointing: see :func:`usreg.models.checkpointing.checkpoint_parts`.
        spatial_dims: 3 for volumes, 2 for slices; in training, by ``image_size``.
        image_channels: channels of an image; in training, those of the dataset's.
        warp_mode, warp_padding_mode: see :class:`RegistrationModel`.
    """
    stacked = network_channels(image_channels, in_channels)
    components = field_channels(spatial_dims, out_channels)
    if len(channels) < 2 or len(strides) != len(channels) - 1:
        raise ValueError(
            f"channels {list(channels)} and strides {list(strides)} do not fit: two or more levels of channels, and "
            "one stride fewer than levels"
        )
    check_at_least_one(channels=min(channels), strides=min(strides), num_res_units=num_res_units + 1)
    features = UNet(
        spatial_dims=spatial_dims,
        in_channels=stacked,
        out_channels=channels[0],
        channels=tuple(channels),
        strides=tuple(strides),
        num_res_units=num_res_units,
    )
    if checkpointing:
        checkpoint_parts(_outermost(features, (ResidualUnit, Convolution)))
    # A layer of its own: the UNet's last unit adds its input to its output, so no weights of it give a zero field.
    convolution = nn.Conv3d if spatial_dims == SPATIAL_DIMS else nn.Conv2d
    to_field = convolution(channels[0], components, kernel_size=3, padding=1)
    zero_init(to_field)
    return RegistrationModel(
        nn.Sequential(features, to_field),
        multiple=math.prod(strides),
        spatial_dims=spatial_dims,
        image_channels=image_channels,
        warp_mode=warp_mode,
        warp_padding_mode=warp_padding_mode,
    )


def _outermost(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    """The modules of some kinds inside another one, but none inside them."""
    for child in module.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from _outermost(child, kinds)
