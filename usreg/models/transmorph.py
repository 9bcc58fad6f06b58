"""``transmorph3d``: MONAI's SwinUNETR, a transformer with a convolutional decoder."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.swin_unetr import SwinUNETR
from torch import nn

from .base import SPATIAL_DIMS, RegistrationModel, check_at_least_one, field_channels, network_channels, zero_init
from .checkpointing import checkpoint_parts
from .utils import register_model

MULTIPLE = 32
"""SwinUNETR halves five times."""
LEVELS = 4


@register_model("transmorph3d")
def create_transmorph3d(
    feature_size: int = 48,
    depths: Sequence[int] = (2, 2, 2, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int | Sequence[int] = 7,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    dropout_path_rate: float = 0.0,
    use_checkpoint: bool = False,
    checkpointing: bool = False,
    spatial_dims: int = SPATIAL_DIMS,
    image_channels: int = 1,
    warp_mode: str = "bilinear",
    warp_padding_mode: str = "border",
    **_: object,
) -> nn.Module:
    """Deformable registration by MONAI's SwinUNETR; any image size works, padded to multiples of 32.

    Args:
        feature_size: channels of the first level, a multiple of 12.
        depths: attention blocks of each of the four levels.
        num_heads: attention heads of each of the four levels.
        window_size: side of the attention windows, in tokens; one for all axes or one per axis.
        drop_rate, attn_drop_rate, dropout_path_rate: dropout of features, attention weights and whole blocks.
        use_checkpoint: as ``checkpointing``, of the attention blocks only.
        checkpointing: see :func:`usreg.models.checkpointing.checkpoint_parts`; of all blocks.
        spatial_dims: 3 for volumes, 2 for slices; in training, by ``image_size``.
        image_channels: channels of an image; in training, those of the dataset's.
        warp_mode, warp_padding_mode: see :class:`RegistrationModel`.
    """
    check_at_least_one(feature_size=feature_size)
    for key, values in (("depths", depths), ("num_heads", num_heads)):
        if len(values) != LEVELS:
            raise ValueError(f"{key} is {list(values)}; it must have {LEVELS} entries, one per level")
    network = SwinUNETR(
        in_channels=network_channels(image_channels),
        out_channels=field_channels(spatial_dims),
        spatial_dims=spatial_dims,
        feature_size=feature_size,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window_size=window_size if isinstance(window_size, int) else tuple(window_size),
        drop_rate=drop_rate,
        attn_drop_rate=attn_drop_rate,
        dropout_path_rate=dropout_path_rate,
        use_checkpoint=use_checkpoint or checkpointing,
    )
    zero_init(network.out)
    if checkpointing:
        checkpoint_parts(m for name, m in network.named_children() if name.startswith(("encoder", "decoder")))
    return RegistrationModel(
        network,
        multiple=MULTIPLE,
        spatial_dims=spatial_dims,
        image_channels=image_channels,
        warp_mode=warp_mode,
        warp_padding_mode=warp_padding_mode,
    )
