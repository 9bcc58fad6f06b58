"""``localnet3d``: MONAI's LocalNet, which sums fields of several resolutions."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.regunet import LocalNet
from torch import nn

from .base import SPATIAL_DIMS, RegistrationModel, check_at_least_one, check_in_channels, zero_init
from .utils import register_model


@register_model("localnet3d")
def create_localnet3d(
    in_channels: int = 2,
    num_channel_initial: int = 16,
    depth: int = 3,
    warp_mode: str = "bilinear",
    warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Deformable registration by MONAI's LocalNet: the mean of one field per level, 0 to ``depth``.

    Args:
        in_channels: 2, the moving and the fixed image.
        num_channel_initial: channels of the first level, doubled at each further one.
        depth: number of times that the image is halved; any image size works.
        warp_mode, warp_padding_mode: see :class:`RegistrationModel`.
    """
    check_in_channels(in_channels)
    check_at_least_one(num_channel_initial=num_channel_initial, depth=depth)
    network: Any = LocalNet(
        spatial_dims=SPATIAL_DIMS,
        in_channels=in_channels,
        num_channel_initial=num_channel_initial,
        extract_levels=tuple(range(depth + 1)),  # type: ignore[arg-type]  # MONAI says tuple[int] for any length
        out_channels=SPATIAL_DIMS,
    )
    # MONAI enlarges the coarse fields by nearest neighbour: steps of 2^depth voxels, and folding at each of them.
    network.output_block.mode = "trilinear"
    network.output_block.align_corners = False
    zero_init(network.output_block)
    return RegistrationModel(network, multiple=2**depth, warp_mode=warp_mode, warp_padding_mode=warp_padding_mode)
