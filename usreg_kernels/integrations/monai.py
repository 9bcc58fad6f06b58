"""Makes MONAI's own losses and blocks run the fused ops: ``patch()`` before training, ``unpatch()`` to go back.

The classes stay MONAI's (constructor, checks, attributes); their ``forward`` is replaced, so objects and imports made
before the patch follow it too. Four things differ from MONAI. Half-precision input gives a float32 loss (MONAI's is
often NaN there) and a float32 image or field. Integer fields are refused. A coordinate that is not finite warps to NaN.
The mutual information with a constant image is 0 and not NaN, and with an infinite value NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from usreg_kernels.checks import LEAST_BINS
from usreg_kernels.dispatch import is_worthwhile
from usreg_kernels.fields import INTERPOLATIONS, integrate_velocity, warp
from usreg_kernels.functional import (
    bending_energy_loss,
    gradient_smoothness_loss,
    lncc_loss,
    mutual_information_loss,
)
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


def _sigma_ratio(loss: Any) -> float:
    """The width of the gaussians in bins, of which a MONAI object keeps ``1 / (2 sigma^2)``; 0 where it has none.

    Read once: the object keeps it as a tensor, perhaps on a GPU.
    """
    if not hasattr(loss, "_usreg_sigma_ratio"):
        spread = 0.0 if loss.preterm is None else float(loss.preterm)
        found = (loss.num_bins - 1) / (2.0 * spread) ** 0.5 if spread > 0 else 0.0
        loss._usreg_sigma_ratio = float(f"{found:.6g}")  # MONAI rounds to float32
    ratio: float = loss._usreg_sigma_ratio
    return ratio


def _mutual_information_forward(self: Any, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    original = _originals[_mutual_information_class()]
    is_spline = self.kernel_type == "b-spline"
    takes = (
        target.shape == pred.shape
        and pred.ndim in (3, 4, 5)
        and pred.is_floating_point()
        and target.is_floating_point()
        and self.num_bins >= LEAST_BINS[self.kernel_type]
        and self.smooth_nr >= 0
        and self.smooth_dr > 0
        and is_worthwhile("mutual_information", pred.device.type)
    )
    if not takes or not (is_spline or _sigma_ratio(self) > 0):
        return original(self, pred, target)
    dtype = torch.promote_types(pred.dtype, target.dtype)
    return mutual_information_loss(
        pred.to(dtype),
        target.to(dtype),
        num_bins=self.num_bins,
        kernel=self.kernel_type,
        sigma_ratio=0.5 if is_spline else _sigma_ratio(self),
        reduction=self.reduction,
        smooth_nr=self.smooth_nr,
        smooth_dr=self.smooth_dr,
    )


def _mutual_information_class() -> type:
    from monai.losses.image_dissimilarity import GlobalMutualInformationLoss

    return GlobalMutualInformationLoss


def _diffusion_forward(self: Any, pred: torch.Tensor) -> torch.Tensor:
    return gradient_smoothness_loss(pred, scheme="central", normalize=self.normalize, reduction=self.reduction)


def _bending_forward(self: Any, pred: torch.Tensor) -> torch.Tensor:
    return bending_energy_loss(pred, normalize=self.normalize, reduction=self.reduction)


def _lncc_class() -> type:
    from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss

    return LocalNormalizedCrossCorrelationLoss


def _is_fused(block: Any, image: torch.Tensor, ddf: torch.Tensor) -> bool:
    """Whether the fused warp does what a MONAI ``Warp`` does with these tensors, with a kernel.

    MONAI's own says what is wrong with tensors that do not fit. Its compiled extensions know more modes. An axis of one
    voxel has no neighbours there, whatever the padding mode.
    """
    dims = image.ndim - 2
    return (
        dims in (2, 3)
        and image.device == ddf.device
        and is_worthwhile("warp", image.device.type)
        and ddf.shape == (image.shape[0], dims, *image.shape[2:])
        and min(image.shape[2:]) > (1 if block._padding_mode_native == "zeros" else 0)
        and block._interp_mode == block._interp_mode_native
        and block._interp_mode_native in INTERPOLATIONS
        and not block.jitter
    )


def _warp_forward(self: Any, image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
    if not _is_fused(self, image, ddf):
        return _originals[_warp_class()](self, image, ddf)
    warped = warp(image, ddf, mode=self._interp_mode_native, padding_mode=self._padding_mode_native)
    return _like(image, warped)


def _integrate_forward(self: Any, dvf: torch.Tensor) -> torch.Tensor:
    block = self.warp_layer
    if block._interp_mode_native != "bilinear" or not _is_fused(block, dvf, dvf):
        return _originals[_integrate_class()](self, dvf)
    ddf = integrate_velocity(dvf, steps=self.num_steps, padding_mode=block._padding_mode_native)
    return _like(dvf, ddf)


def _like(image: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """The result as a ``MetaTensor`` with the image's meta data, where the image is one."""
    from monai.data.meta_tensor import MetaTensor

    return MetaTensor(result).copy_meta_from(image) if isinstance(image, MetaTensor) else result


def _warp_class() -> type:
    from monai.networks.blocks.warp import Warp

    return Warp


def _integrate_class() -> type:
    from monai.networks.blocks.warp import DVF2DDF

    return DVF2DDF


def _replacements() -> dict[type, Callable[..., torch.Tensor]]:
    try:
        from monai.losses.deform import BendingEnergyLoss, DiffusionLoss

        return {
            _lncc_class(): _lncc_forward,
            _mutual_information_class(): _mutual_information_forward,
            DiffusionLoss: _diffusion_forward,
            BendingEnergyLoss: _bending_forward,
            _warp_class(): _warp_forward,
            _integrate_class(): _integrate_forward,
        }
    except ImportError as error:
        raise ImportError("usreg_kernels.integrations.monai needs MONAI: pip install 'monai>=1.6'") from error


def patch() -> None:
    """Replace the forward pass of MONAI's losses and blocks that have a fused counterpart.

    They are its LNCC, mutual-information, diffusion and bending-energy losses, ``Warp`` and ``DVF2DDF``. The blocks and
    the mutual information keep their own where no kernel of the fused ops can run. Does nothing when done already.

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
