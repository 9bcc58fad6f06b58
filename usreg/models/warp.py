"""The one place that warps: the fused kernel where there is one, else MONAI's ``Warp`` block; always in float32."""

from __future__ import annotations

import functools
import warnings

import torch
from monai.networks.blocks.warp import Warp

import usreg_kernels as uk
from usreg_kernels.dispatch import is_worthwhile

MODES = ("bilinear", "nearest")
PADDING_MODES = ("border", "zeros", "reflection")


def warp(image: torch.Tensor, ddf: torch.Tensor, mode: str = "bilinear", padding_mode: str = "border") -> torch.Tensor:
    """Pull an image through a displacement field: ``warped(x) = image(x + ddf(x))``.

    A field of +2 everywhere in its first channel shows, at each voxel, what lies two voxels further along z.

    Args:
        image: (B, C, D, H, W), any floating-point dtype; several channels (labels) are warped alike.
        ddf: (B, 3, D, H, W), in voxels, channel order z, y, x.
        mode: ``bilinear`` (trilinear in 3-D), or ``nearest``, which has no gradient to the field.
        padding_mode: what lies outside: ``border`` repeats the edge, ``zeros``, or ``reflection``.

    Returns:
        (B, C, D, H, W) in float32 (float64 where an input is float64), under autocast too: half-precision coordinates
        are off by up to a quarter of a voxel in a volume of 512.

    Raises:
        ValueError: an unknown mode, or shapes that do not fit.
    """
    check_modes(mode, padding_mode)
    if image.shape[2:] != ddf.shape[2:]:
        raise ValueError(f"image {tuple(image.shape)} and ddf {tuple(ddf.shape)} must have one spatial size")
    if is_worthwhile("warp", image.device.type):
        return uk.warp(image, ddf, mode=mode, padding_mode=padding_mode)  # type: ignore[arg-type]
    dtype = torch.promote_types(torch.promote_types(image.dtype, ddf.dtype), torch.float32)
    with torch.autocast(ddf.device.type, enabled=False):
        warped: torch.Tensor = _block(mode, padding_mode)(image.to(dtype), ddf.to(dtype))
    return warped


def check_modes(mode: str, padding_mode: str) -> None:
    """Raise ValueError for an interpolation or a padding mode that :func:`warp` does not know.

    MONAI's block would take an unknown one for its default.
    """
    if mode not in MODES:
        raise ValueError(f"the warp mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"the warp padding mode is {padding_mode!r}; it must be one of {', '.join(PADDING_MODES)}")


class _Warp(Warp):
    """MONAI's block without its memory of the last grid, of which it checks only the shape, not device or dtype."""

    def get_reference_grid(self, ddf: torch.Tensor, jitter: bool = False, seed: int = 0) -> torch.Tensor:
        """The voxel coordinates (1, 3, D, H, W), order z, y, x; the block has no jitter here."""
        axes = [torch.arange(length, device=ddf.device, dtype=ddf.dtype) for length in ddf.shape[2:]]
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


@functools.cache
def _block(mode: str, padding_mode: str) -> _Warp:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Using PyTorch native grid_sample", category=UserWarning)
        return _Warp(mode=mode, padding_mode=padding_mode)
