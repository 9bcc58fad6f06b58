"""The losses as modules that hold their arguments; the names and orders of MONAI's where MONAI has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from usreg_kernels import checks
from usreg_kernels.functional import (
    PARZEN_KERNELS,
    PENALTIES,
    SCHEMES,
    ParzenKernel,
    Penalty,
    Scheme,
    bending_energy_loss,
    dvf_mse_loss,
    dvf_supervision_loss,
    folding_loss,
    gradient_smoothness_loss,
    lncc_loss,
    mind_loss,
    mutual_information_loss,
)
from usreg_kernels.ops.mind_ssc.pairs import LARGEST_RADIUS
from usreg_kernels.ops.reduction import Reduction
from usreg_kernels.windows import KernelType


class _Loss(nn.Module):
    """A loss with its arguments as attributes, which it prints and gives to its function."""

    _arguments: tuple[str, ...]

    def _keywords(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._arguments}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._keywords().items())


def _checked_spacing(spacing: float | Sequence[float] | None) -> float | list[float] | None:
    """A spacing whose number of axes will be known with the first field."""
    if checks.has_entries(spacing):
        return checks.check_spacing(spacing, len(spacing))  # type: ignore[arg-type]
    checked = checks.check_spacing(spacing, 1)
    return None if checked is None else checked[0]


class LNCCLoss(_Loss):
    """Local squared normalised cross-correlation, negated; see :func:`usreg_kernels.lncc_loss`.

    Takes the constructor arguments of MONAI's ``LocalNormalizedCrossCorrelationLoss``, positionally too, and raises
    ValueError where MONAI does. ``kernel_size`` may also be one odd int per axis.
    """

    _arguments = ("kernel_size", "kernel_type", "reduction", "smooth_nr", "smooth_dr")

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int | Sequence[int] = 3,
        kernel_type: KernelType = "rectangular",
        reduction: Reduction = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
    ) -> None:
        super().__init__()
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims!r}")
        checks.check_kernel_size(kernel_size, spatial_dims)
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.kernel_type = checks.check_kernel_type(kernel_type)
        self.reduction = checks.check_reduction(reduction)
        self.smooth_nr = checks.check_number("smooth_nr", smooth_nr)
        self.smooth_dr = checks.check_number("smooth_dr", smooth_dr, least=0.0)

    def extra_repr(self) -> str:
        return f"spatial_dims={self.spatial_dims}, {super().extra_repr()}"

    def forward(self, pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of ``pred`` and ``target`` (B, C, spatial...), with an optional ``mask`` (B, 1 or C, spatial...)."""
        if pred.ndim - 2 != self.spatial_dims:
            raise ValueError(
                f"pred must have shape (B, C, spatial...) with {self.spatial_dims} spatial dimensions, "
                f"got {tuple(pred.shape)}; set spatial_dims={pred.ndim - 2} to compare such images"
            )
        return lncc_loss(pred, target, mask=mask, **self._keywords())


class MINDLoss(_Loss):
    """The squared difference of two images' MIND-SSC descriptors; see :func:`usreg_kernels.mind_loss`."""

    _arguments = ("radius", "dilation", "reduction")

    def __init__(self, radius: int = 2, dilation: int = 2, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.radius = checks.check_count("radius", radius, most=LARGEST_RADIUS)
        self.dilation = checks.check_count("dilation", dilation, least=1, most=LARGEST_RADIUS)
        self.reduction = checks.check_reduction(reduction)

    def forward(self, pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of ``pred`` and ``target`` (B, C, spatial...), with an optional ``mask`` (B, 1 or C, spatial...)."""
        return mind_loss(pred, target, mask=mask, **self._keywords())


class GradientSmoothnessLoss(_Loss):
    """First-order smoothness of a displacement field; see :func:`usreg_kernels.gradient_smoothness_loss`.

    With ``scheme="central"`` it is MONAI's ``DiffusionLoss``.
    """

    _arguments = ("penalty", "scheme", "spacing", "normalize", "reduction")

    def __init__(
        self,
        penalty: Penalty = "l2",
        scheme: Scheme = "forward",
        spacing: float | Sequence[float] | None = None,
        normalize: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.penalty = checks.check_choice("penalty", penalty, PENALTIES)
        self.scheme = checks.check_choice("scheme", scheme, SCHEMES)
        self.spacing = _checked_spacing(spacing)
        self.normalize = normalize
        self.reduction = checks.check_reduction(reduction)

    def forward(self, dvf: torch.Tensor) -> torch.Tensor:
        """The smoothness of ``dvf`` (B, n, spatial...)."""
        return gradient_smoothness_loss(dvf, **self._keywords())


class BendingEnergyLoss(_Loss):
    """Bending energy of a displacement field, as MONAI's class; see :func:`usreg_kernels.bending_energy_loss`."""

    _arguments = ("normalize", "reduction")

    def __init__(self, normalize: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.normalize = normalize
        self.reduction = checks.check_reduction(reduction)

    def forward(self, dvf: torch.Tensor) -> torch.Tensor:
        """The energy of ``dvf`` (B, n, spatial...)."""
        return bending_energy_loss(dvf, **self._keywords())


class DVFMSELoss(_Loss):
    """Mean squared error between displacement fields; see :func:`usreg_kernels.dvf_mse_loss`."""

    _arguments = ("reduction",)

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction = checks.check_reduction(reduction)

    def forward(self, pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The error of ``pred_dvf`` against ``gt_dvf`` (B, C, spatial...), with an optional ``mask``."""
        return dvf_mse_loss(pred_dvf, gt_dvf, mask=mask, **self._keywords())


class DVFSupervisionLoss(_Loss):
    """Mean squared error of a predicted field, and its smoothness; see :func:`usreg_kernels.dvf_supervision_loss`."""

    _arguments = ("mse_weight", "smooth_weight", "spacing")

    def __init__(
        self,
        mse_weight: float = 1.0,
        smooth_weight: float = 0.01,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.mse_weight = checks.check_number("mse_weight", mse_weight)
        self.smooth_weight = checks.check_number("smooth_weight", smooth_weight)
        self.spacing = _checked_spacing(spacing)

    def forward(self, pred_dvf: torch.Tensor, gt_dvf: torch.Tensor) -> torch.Tensor:
        """The loss of ``pred_dvf`` (B, n, spatial...), which is known to be ``gt_dvf``."""
        return dvf_supervision_loss(pred_dvf, gt_dvf, **self._keywords())


class FoldingLoss(_Loss):
    """How far the Jacobian determinant of a field falls below a margin; see :func:`usreg_kernels.folding_loss`."""

    _arguments = ("spacing", "margin", "reduction")

    def __init__(
        self, spacing: float | Sequence[float] | None = None, margin: float = 0.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.spacing = _checked_spacing(spacing)
        self.margin = checks.check_number("margin", margin)
        self.reduction = checks.check_reduction(reduction)

    def forward(self, ddf: torch.Tensor) -> torch.Tensor:
        """The folding of ``ddf`` (B, n, spatial...)."""
        return folding_loss(ddf, **self._keywords())


class MutualInformationLoss(_Loss):
    """Mutual information of the intensities, negated; see :func:`usreg_kernels.mutual_information_loss`.

    Takes the constructor arguments of MONAI's ``GlobalMutualInformationLoss``, positionally too. The defaults are those
    of the function: MONAI's are ``kernel_type="gaussian", num_bins=23``.
    """

    _arguments = ("kernel_type", "num_bins", "sigma_ratio", "reduction", "smooth_nr", "smooth_dr", "normalized")

    def __init__(
        self,
        kernel_type: ParzenKernel = "b-spline",
        num_bins: int = 32,
        sigma_ratio: float = 0.5,
        reduction: Reduction = "mean",
        smooth_nr: float = 1e-7,
        smooth_dr: float = 1e-7,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_type = checks.check_choice("kernel_type", kernel_type, PARZEN_KERNELS)
        self.num_bins = checks.check_bins(num_bins, self.kernel_type)
        self.sigma_ratio = checks.check_positive("sigma_ratio", sigma_ratio)
        self.reduction = checks.check_reduction(reduction)
        self.smooth_nr = checks.check_number("smooth_nr", smooth_nr, least=0.0)
        self.smooth_dr = checks.check_positive("smooth_dr", smooth_dr)
        self.normalized = bool(normalized)

    def forward(self, pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of ``pred`` and ``target`` (B, C, spatial...), with an optional ``mask`` (B, 1 or C, spatial...)."""
        return mutual_information_loss(
            pred,
            target,
            num_bins=self.num_bins,
            kernel=self.kernel_type,
            normalized=self.normalized,
            sigma_ratio=self.sigma_ratio,
            reduction=self.reduction,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            mask=mask,
        )
