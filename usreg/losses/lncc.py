"""``lncc``: local normalised cross-correlation of the warped and the fixed image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from usreg_kernels import LNCCLoss

from .utils import register_loss, to_common_dtype, validate_smoothing_params


class LNCCImageLoss(nn.Module):
    """Negated mean (or sum) of the squared local correlation; -1 (mean) is a perfect match, 0 is none.

    The arithmetic and the arguments are those of :class:`usreg_kernels.LNCCLoss`, which follows MONAI.

    Args:
        kernel_size: window in voxels, odd; one for all axes or one per axis (z, y, x).
        spatial_dims: 1, 2 or 3.
        kernel_type: ``rectangular``, ``triangular`` or ``gaussian``.
        reduction: ``mean`` or ``sum``.
        smooth_nr: added to the numerator, raised to 1e-4 or more.
        smooth_dr: smallest variance, raised to 1e-2 or more.

    Raises:
        ValueError: an even window, or an unknown kernel type or reduction.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 3,
        spatial_dims: int = 3,
        kernel_type: str = "rectangular",
        reduction: str = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(
                f"reduction is {reduction!r}; it must be 'mean' or 'sum', because training minimises one number"
            )
        smooth_nr, smooth_dr = validate_smoothing_params(smooth_nr, smooth_dr)
        self.lncc = LNCCLoss(
            spatial_dims=spatial_dims,
            kernel_size=kernel_size if isinstance(kernel_size, int) else tuple(kernel_size),
            kernel_type=kernel_type,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
        )

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """The loss of ``warped`` and ``fixed``, each (B, 1, D, H, W), as a float32 scalar."""
        loss: torch.Tensor = self.lncc(*to_common_dtype(warped, fixed))
        return loss


def window(kernel_size: int | Sequence[int], patch_size: int | Sequence[int] | None) -> int | Sequence[int]:
    """The window from ``kernel_size`` or its other name, ``patch_size``, which wins over the default 3.

    Raises:
        ValueError: both are given and differ.
    """
    if patch_size is None or patch_size == kernel_size:
        return kernel_size
    if kernel_size != 3:
        raise ValueError(f"kernel_size {kernel_size} and patch_size {patch_size} name one window: give one of them")
    return patch_size


@register_loss("lncc")
def create_lncc(
    kernel_size: int | Sequence[int] = 3,
    patch_size: int | Sequence[int] | None = None,
    spatial_dims: int = 3,
    kernel_type: str = "rectangular",
    reduction: str = "mean",
    smooth_nr: float = 0.0,
    smooth_dr: float = 1e-5,
    **_: object,
) -> nn.Module:
    """Local normalised cross-correlation; ``patch_size`` is another name of ``kernel_size``."""
    size = window(kernel_size, patch_size)
    return LNCCImageLoss(size, spatial_dims, kernel_type, reduction, smooth_nr, smooth_dr)
