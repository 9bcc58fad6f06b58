"""``lncc``: local normalised cross-correlation of the warped and the fixed image."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from usreg_kernels import LNCCLoss

from .utils import (
    DEFAULT_SMOOTHING,
    MIN_SMOOTH_DR,
    MIN_SMOOTH_NR,
    register_loss,
    to_common_dtype,
    validate_smoothing_params,
)

logger = logging.getLogger(__name__)


SLACK = 1e-4
"""How far below -1 a mean may lie by rounding."""


class LNCCImageLoss(nn.Module):
    """Negated mean (or sum) of the squared local correlation; -1 (mean) is a perfect match, 0 is none.

    The arithmetic and the arguments are those of :class:`usreg_kernels.LNCCLoss`, which follows MONAI.

    The range is [-1, 0] only while ``smooth_nr`` is small beside ``smooth_dr ** 2``. At the values that both are raised
    to, a window where either image is (nearly) constant reads -1, a perfect match, and one of low contrast down to -2:
    such regions do not pull the registration, but the number is no measure of similarity. ``clamp_smoothing=False``
    takes both terms as they are given, which is safe here, since sums are float32 or wider.

    Args:
        kernel_size: window in voxels, odd; one for all axes or one per axis (z, y, x).
        spatial_dims: 1, 2 or 3.
        kernel_type: ``rectangular``, ``triangular`` or ``gaussian``.
        reduction: ``mean`` or ``sum``.
        smooth_nr: added to the numerator, raised to 1e-4 or more.
        smooth_dr: smallest variance, raised to 1e-2 or more.
        clamp_smoothing: whether the two are raised.

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
        clamp_smoothing: bool = True,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(
                f"reduction is {reduction!r}; it must be 'mean' or 'sum', because training minimises one number"
            )
        if clamp_smoothing:
            given = smooth_nr, smooth_dr
            raised = (MIN_SMOOTH_NR, MIN_SMOOTH_DR)
            smooth_nr, smooth_dr = raised if given == DEFAULT_SMOOTHING else validate_smoothing_params(*given)
        self._has_warned = self._has_told = False
        self.lncc = LNCCLoss(
            spatial_dims=spatial_dims,
            kernel_size=kernel_size if isinstance(kernel_size, int) else tuple(kernel_size),
            kernel_type=kernel_type,  # type: ignore[arg-type]  # checked there
            reduction=reduction,  # type: ignore[arg-type]
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
        )

    @property
    def reach(self) -> int:
        """How many voxels away along an axis a value of the image still counts."""
        size = self.lncc.kernel_size
        return (size if isinstance(size, int) else max(size)) // 2

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of ``warped`` and ``fixed``, each (B, C, D, H, W), as a float32 scalar.

        Args:
            warped, fixed: the images; two or one spatial axes with such a ``spatial_dims``.
            mask: (B, 1, D, H, W), weighs the correlation of each voxel; the windows see all voxels.
        """
        self._tell_of_thin_axes(fixed.shape[2:])
        loss: torch.Tensor = self.lncc(*to_common_dtype(warped, fixed), mask)
        self._warn_below_minus_one(loss)
        return loss

    def _tell_of_thin_axes(self, shape: Sequence[int]) -> None:
        """Say once that windows reach across an axis of one voxel, where they hold nothing but zeros."""
        if self._has_told or 1 not in shape or torch.compiler.is_compiling():
            return
        size = self.lncc.kernel_size
        sizes = [size] * len(shape) if isinstance(size, int) else list(size)
        fitting = [1 if length == 1 else one for length, one in zip(shape, sizes, strict=True)]
        if fitting != sizes:
            self._has_told = True
            logger.warning(
                "LNCC: the images have %s voxels, and windows of %s reach into zeros across the axis of one voxel, "
                "which count as alike. kernel_size: %s looks at the slice only",
                *(" x ".join(map(str, shape)), " x ".join(map(str, sizes)), fitting),
            )

    def _warn_below_minus_one(self, loss: torch.Tensor) -> None:
        """Say once that the value is no correlation. On GPUs only in validation, since to look at it is to wait."""
        if self._has_warned or self.lncc.reduction != "mean" or torch.compiler.is_compiling():
            return
        looks = loss.device.type == "cpu" or not torch.is_grad_enabled()
        if looks and not loss.is_meta and loss.item() < -1.0 - SLACK:
            self._has_warned = True
            logger.warning(
                "LNCC is %.4g, below -1: smooth_nr %g is large beside the square of smooth_dr %g, so windows of low "
                "contrast count as more than a perfect match. clamp_smoothing=false takes the two as given",
                *(loss.item(), self.lncc.smooth_nr, self.lncc.smooth_dr),
            )


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
    clamp_smoothing: bool = True,
    **_: object,
) -> nn.Module:
    """Local normalised cross-correlation; ``patch_size`` is another name of ``kernel_size``."""
    size = window(kernel_size, patch_size)
    return LNCCImageLoss(size, spatial_dims, kernel_type, reduction, smooth_nr, smooth_dr, clamp_smoothing)
