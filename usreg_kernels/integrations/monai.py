"""Makes MONAI's own loss classes run the fused ops: ``patch()`` before training, ``unpatch()`` to go back.

The classes stay MONAI's (constructor, checks, attributes); their ``forward`` is replaced, so objects and imports made
before the patch follow it too. Two things differ from MONAI: the loss of half-precision input is float32 (MONAI's is
often NaN there), and integer fields are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from usreg_kernels.functional import bending_energy_loss, gradient_smoothness_loss, lncc_loss
from usreg_kernels.windows import KERNEL_TYPES, KernelType, make_window

_originals: dict[type, Callable[..., torch.Tensor]] = {}


def _kernel_type(loss: Any) -> KernelType | None:
    """Which window a MONAI object holds; it keeps the weights and not the name."""
    if not hasattr(loss, "_usreg_kernel_type"):
        weights = tuple(loss.kernel.tolist())
        names = [name for name in KERNEL_TYPES if make_window(name, (loss.kernel_size,)).weights[0] == weights]
        loss._usreg_kernel_type = names[0] if names else None
    kernel_type: KernelType | None = loss._usreg_kernel_type
    return kernel_type


def _lncc_forward(self: Any, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    kernel_type = _kernel_type(self)
    if kernel_type is None or pred.ndim - 2 != self.ndim or target.shape != pred.shape:
        return _originals[_lncc_class()](self, pred, target)
    dtype = torch.promote_types(pred.dtype, target.dtype)
    return lncc_loss(
        pred.to(dtype),
        target.to(dtype),
        kernel_size=self.kernel_size,
        kernel_type=kernel_type,
        reduction=self.reduction,
        smooth_nr=self.smooth_nr,
        smooth_dr=self.smooth_dr,
    )


def _diffusion_forward(self: Any, pred: torch.Tensor) -> torch.Tensor:
    return gradient_smoothness_loss(pred, scheme="central", normalize=self.normalize, reduction=self.reduction)


def _bending_forward(self: Any, pred: torch.Tensor) -> torch.Tensor:
    return bending_energy_loss(pred, normalize=self.normalize, reduction=self.reduction)


def _lncc_class() -> type:
    from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss

    return LocalNormalizedCrossCorrelationLoss


def _replacements() -> dict[type, Callable[..., torch.Tensor]]:
    try:
        from monai.losses.deform import BendingEnergyLoss, DiffusionLoss

        return {
            _lncc_class(): _lncc_forward,
            DiffusionLoss: _diffusion_forward,
            BendingEnergyLoss: _bending_forward,
        }
    except ImportError as error:
        raise ImportError("usreg_kernels.integrations.monai needs MONAI: pip install 'monai>=1.6'") from error


def patch() -> None:
    """Replace the forward pass of MONAI's LNCC, diffusion and bending-energy losses; does nothing when done already.

    Raises:
        ImportError: MONAI is not installed.
    """
    for cls, forward in _replacements().items():
        if cls not in _originals:
            _originals[cls] = cls.forward  # type: ignore[attr-defined]
            cls.forward = forward  # type: ignore[attr-defined]


def unpatch() -> None:
    """Give MONAI's classes their own forward pass back; does nothing when they have it."""
    while _originals:
        cls, forward = _originals.popitem()
        cls.forward = forward  # type: ignore[attr-defined]
