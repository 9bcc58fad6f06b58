"""``localnet3d``: MONAI's LocalNet, which sums fields of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.nets.regunet import LocalNet
from torch import nn

from .base import SPATIAL_DIMS, RegistrationModel, check_at_least_one, field_channels, network_channels, zero_init
from .checkpointing import checkpoint_parts
from .utils import register_model

DEPTH = 3


@register_model("localnet3d")
def create_localnet3d(
    in_channels: int | None = None,
    num_channel_initial: int = 16,
    depth: int = DEPTH,
    extract_levels: Sequence[int] | None = None,
    out_channels: int = 3,
    pooling: bool = True,
    concat_skip: bool = False,
    checkpointing: bool = False,
    spatial_dims: int = SPATIAL_DIMS,
    image_channels: int = 1,
    warp_mode: str = "bilinear",
    warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Deformable registration by MONAI's LocalNet: the mean of one field per level that is read.

    Args:
        in_channels: twice ``image_channels``, the moving and the fixed image; it need not be given.
        num_channel_initial: channels of the first level, doubled at each further one.
        depth: number of times that the image is halved, which reads the levels 0 to ``depth``; any image size works.
        extract_levels: the levels to read, in place of ``depth``; the largest is the depth.
        out_channels: 3, the components of the field; in 2-D 2 is good too.
        pooling: halve by maxima; false: by convolutions.
        concat_skip: put the encoder's features beside the decoder's; false: add them.
        checkpointing: see :func:`usreg.models.checkpointing.checkpoint_parts`.
        spatial_dims: 3 for volumes, 2 for slices; in training, by ``image_size``.
        image_channels: channels of an image; in training, those of the dataset's.
        warp_mode, warp_padding_mode: see :class:`RegistrationModel`.
    """
    stacked = network_channels(image_channels, in_channels)
    components = field_channels(spatial_dims, out_channels)
    levels = _levels(depth, extract_levels)
    check_at_least_one(num_channel_initial=num_channel_initial, depth=max(levels, default=0))
    network: Any = LocalNet(
        spatial_dims=spatial_dims,
        in_channels=stacked,
        num_channel_initial=num_channel_initial,
        extract_levels=levels,  # type: ignore[arg-type]  # MONAI says tuple[int] for any length
        out_channels=components,
        pooling=pooling,
        concat_skip=concat_skip,
    )
    # MONAI enlarges the coarse fields by nearest neighbour: steps of 2^depth voxels, and folding at each of them.
    network.output_block.mode = "trilinear" if spatial_dims == SPATIAL_DIMS else "bilinear"
    network.output_block.align_corners = False
    zero_init(network.output_block)
    if checkpointing:
        checkpoint_parts([*network.encode_convs, network.bottom_block, *network.decode_deconvs, *network.decode_convs])
    return RegistrationModel(
        network,
        multiple=2 ** max(levels),
        spatial_dims=spatial_dims,
        image_channels=image_channels,
        warp_mode=warp_mode,
        warp_padding_mode=warp_padding_mode,
    )


def _levels(depth: int, extract_levels: Sequence[int] | None) -> tuple[int, ...]:
    """The levels that are read, fine to coarse."""
    if extract_levels is None:
        return tuple(range(depth + 1))
    levels = tuple(sorted(set(extract_levels)))
    if not levels or levels[0] < 0 or len(levels) < len(extract_levels):
        raise ValueError(f"extract_levels is {list(extract_levels)}; it must be different whole numbers from 0 on")
    if depth not in (DEPTH, levels[-1]):
        raise ValueError(
            f"depth is {depth} and the largest of extract_levels {levels[-1]}; give one of them, or make them equal"
        )
    return levels
