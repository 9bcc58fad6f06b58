"""The losses as functions: what they mean, and the checks of their arguments.

Shapes are (B, C, D, H, W), or fewer spatial axes; axes and vector components are in the order z, y, x. Inputs are
float64, float32, float16 or bfloat16. A loss is float64 for float64 input and float32 for every other; a gradient has
the dtype of its input. Nothing waits for the device.

Double backward works, and so do the transforms of ``torch.func``, forward-mode derivatives and several gradients at
once (``is_grads_batched``): these compute through the plain PyTorch reference, whatever backend was chosen. A tensor
subclass such as MONAI's ``MetaTensor`` counts as the tensor that it holds; a loss is always a plain tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from usreg_kernels import checks, dispatch, fields, optim
from usreg_kernels.ops.bending_energy import OP as BENDING_ENERGY
from usreg_kernels.ops.dvf_mse import OP as DVF_MSE
from usreg_kernels.ops.dvf_supervision import OP as DVF_SUPERVISION
from usreg_kernels.ops.folding import OP as FOLDING
from usreg_kernels.ops.gradient_smoothness import OP as GRADIENT_SMOOTHNESS
from usreg_kernels.ops.lncc import OP as LNCC
from usreg_kernels.ops.mind import OP as MIND
from usreg_kernels.ops.mind_ssc.pairs import LARGEST_RADIUS
from usreg_kernels.ops.mutual_information import OP as MUTUAL_INFORMATION
from usreg_kernels.ops.reduction import Reduction
from usreg_kernels.windows import KernelType

Penalty = Literal["l2", "l1"]
Scheme = Literal["forward", "central"]
ParzenKernel = Literal["b-spline", "gaussian"]

PENALTIES: tuple[Penalty, ...] = get_args(Penalty)
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
PARZEN_KERNELS: tuple[ParzenKernel, ...] = get_args(ParzenKernel)


def lncc_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    kernel_size: int | Sequence[int] = 3,
    kernel_type: KernelType = "rectangular",
    reduction: Reduction = "mean",
    smooth_nr: float = 0.0,
    smooth_dr: float = 1e-5,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Local squared zero-normalised cross-correlation, negated: about -1 for a perfect match, 0 for none.

    ``-(cross^2 + smooth_nr) / (max(var_pred, smooth_dr) * max(var_target, smooth_dr))`` over a window around each
    voxel, with zero padding: MONAI 1.6's ``LocalNormalizedCrossCorrelationLoss``.

    Args:
        pred: (B, C, spatial...) with 1, 2 or 3 spatial dimensions, for example the warped image; any value range.
        target: same shape, dtype and device as ``pred``, for example the fixed image.
        kernel_size: odd window size in voxels, one for all axes or one per axis (z, y, x).
        kernel_type: ``"rectangular"``, ``"triangular"`` or ``"gaussian"`` (standard deviation kernel_size / 3).
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the map (B, C, spatial...).
        smooth_nr: added to the numerator.
        smooth_dr: lower bound of each variance (times the window's volume), in units of intensity squared.
        mask: (B, 1 or C, spatial...), any real dtype; weighs the map, ``-sum(m * ncc) / sum(m)`` for ``"mean"``. The
            windows see all voxels. An all-zero mask gives 0 and zero gradients. It gets no gradient.

    Returns:
        A scalar, or the map for ``reduction="none"``. The mean of an empty batch is NaN.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: shapes, dtypes or devices differ; an even window; an unknown name.
    """
    dims = checks.check_pair("pred", pred, "target", target)
    return LNCC(
        pred,
        target,
        checks.check_mask(mask, pred),
        kernel_size=checks.check_kernel_size(kernel_size, dims),
        kernel_type=checks.check_kernel_type(kernel_type),
        reduction=checks.check_reduction(reduction),
        smooth_nr=checks.check_number("smooth_nr", smooth_nr),
        smooth_dr=checks.check_number("smooth_dr", smooth_dr, least=0.0),
    )


def mind_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    radius: int = 2,
    dilation: int = 2,
    mask: torch.Tensor | None = None,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """The squared difference of the MIND-SSC descriptors of two images: 0 where their structure is the same.

    ``mean over channels and voxels of (mind_ssc(pred) - mind_ssc(target))^2``, see
    :func:`usreg_kernels.mind_ssc`. The descriptor does not change with brightness and contrast, so that images of
    different modalities can be compared. Neither descriptor is kept in memory.

    Args:
        pred: (B, C, spatial...) with 2 or 3 spatial dimensions, for example the warped image; any value range.
        target: same shape, dtype and device as ``pred``, for example the fixed image.
        radius: of the window in voxels, 0 to 32: it has 2 radius + 1 voxels along each axis.
        dilation: how far the neighbours lie that are compared, in voxels, 1 to 32.
        mask: (B, 1 or C, spatial...), any real dtype; weighs the map, ``sum(m * map) / sum(m)`` for ``"mean"``. The
            descriptors see all voxels. An all-zero mask gives 0 and zero gradients. It gets no gradient.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the map (B, C, spatial...), a mean over the descriptor's
            channels.

    Returns:
        A scalar, or the map for ``reduction="none"``; values from 0 to 1 for a mean. The mean of an empty batch is NaN.
        NaN where an image holds a value that is not finite.

    Raises:
        TypeError: an input is not a floating-point tensor; ``radius`` or ``dilation`` is no integer.
        ValueError: shapes, dtypes or devices differ; one spatial dimension; a radius or dilation out of its range; an
            unknown reduction.
    """
    checks.check_mind("pred", checks.check_pair("pred", pred, "target", target), pred)
    return MIND(
        pred,
        target,
        checks.check_mask(mask, pred),
        radius=checks.check_count("radius", radius, most=LARGEST_RADIUS),
        dilation=checks.check_count("dilation", dilation, least=1, most=LARGEST_RADIUS),
        reduction=checks.check_reduction(reduction),
    )


def gradient_smoothness_loss(
    dvf: torch.Tensor,
    *,
    penalty: Penalty = "l2",
    scheme: Scheme = "forward",
    spacing: float | Sequence[float] | None = None,
    normalize: bool = False,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """First-order smoothness of a displacement field; 0 for a constant field, larger is rougher.

    Args:
        dvf: (B, n, spatial...) with n spatial axes, displacements in voxels or mm.
        penalty: ``"l2"`` (squared differences) or ``"l1"`` (absolute differences).
        scheme: ``"forward"``, the sum over axes of ``mean(torch.diff(dvf, dim) ** 2)``: an axis of size 1 adds 0;
            ``"central"``, MONAI 1.6's ``DiffusionLoss``: interior voxels only, at least 3 voxels along each axis.
        spacing: mm per voxel, a positive number for all axes or one per axis (z, y, x); divides an axis' differences.
        normalize: multiply a component's differences along an axis by size(axis) / size(component's axis), as MONAI.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``: the map of the sum over axes, of the field's shape with a
            missing neighbour counting 0 (``forward``), or of its interior's shape (``central``).

    Returns:
        A scalar, or the map for ``reduction="none"``.

    Raises:
        TypeError: the field is not a floating-point tensor.
        ValueError: wrong number of components, too few voxels for ``central``, an unknown name, a bad spacing.
    """
    scheme = checks.check_choice("scheme", scheme, SCHEMES)
    dims = checks.check_field("dvf", dvf, smallest=3 if scheme == "central" else 0)
    return GRADIENT_SMOOTHNESS(
        dvf,
        penalty=checks.check_choice("penalty", penalty, PENALTIES),
        scheme=scheme,
        spacing=checks.check_spacing(spacing, dims),
        normalize=bool(normalize),
        reduction=checks.check_reduction(reduction),
    )


def bending_energy_loss(dvf: torch.Tensor, *, normalize: bool = False, reduction: Reduction = "mean") -> torch.Tensor:
    """Bending energy of a displacement field, MONAI 1.6's ``BendingEnergyLoss``; 0 for an affine field.

    Args:
        dvf: (B, n, spatial...) with n spatial axes of at least 3 voxels.
        normalize: multiply a component's second derivatives by size(axis) size(axis') / size(component's axis).
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the map at interior voxels (each axis 2 shorter).

    Returns:
        A scalar, or the map for ``reduction="none"``.

    Raises:
        TypeError: the field is not a floating-point tensor.
        ValueError: wrong number of components, too few voxels, an unknown reduction.
    """
    checks.check_field("dvf", dvf, smallest=3)
    return BENDING_ENERGY(dvf, normalize=bool(normalize), reduction=checks.check_reduction(reduction))


def dvf_mse_loss(
    pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, mask: torch.Tensor | None = None, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Mean squared error between two displacement fields; ``F.mse_loss`` where there is no mask.

    Args:
        pred_dvf: (B, C, spatial...) predicted displacements.
        gt_dvf: the known displacements, same shape, dtype, device and unit.
        mask: (B, 1 or C, spatial...), any real dtype; weighs the squared errors, ``"mean"`` divides by its sum times
            the number of components it covers. An all-zero mask gives 0 and zero gradients. It gets no gradient.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the map (B, C, spatial...).

    Returns:
        A scalar in squared units of the fields, or the map for ``reduction="none"``.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: shapes, dtypes or devices differ; an unknown reduction.
    """
    checks.check_pair("pred_dvf", pred_dvf, "gt_dvf", gt_dvf)
    mask = checks.check_mask(mask, pred_dvf)
    return DVF_MSE(pred_dvf, gt_dvf, mask, reduction=checks.check_reduction(reduction))


def dvf_supervision_loss(
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    *,
    mse_weight: float = 1.0,
    smooth_weight: float = 0.01,
    spacing: float | Sequence[float] | None = None,
) -> torch.Tensor:
    """``mse_weight * dvf_mse_loss(pred_dvf, gt_dvf) + smooth_weight * gradient_smoothness_loss(pred_dvf)``.

    Where a fused kernel runs, the two terms share one read of the predicted field in each direction.

    Args:
        pred_dvf: (B, n, spatial...) with n spatial axes, predicted displacements.
        gt_dvf: the known displacements, same shape, dtype, device and unit.
        mse_weight: weight of the mean squared error.
        smooth_weight: weight of the smoothness of ``pred_dvf``: forward differences, squared.
        spacing: mm per voxel, a positive number for all axes or one per axis (z, y, x); divides an axis' differences.

    Returns:
        A scalar in squared units of the fields. The mean of an empty batch is NaN.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: shapes, dtypes or devices differ; wrong number of components; a bad spacing.
    """
    checks.check_pair("pred_dvf", pred_dvf, "gt_dvf", gt_dvf)
    dims = checks.check_field("pred_dvf", pred_dvf, smallest=0)
    return DVF_SUPERVISION(
        pred_dvf,
        gt_dvf,
        mse_weight=checks.check_number("mse_weight", mse_weight),
        smooth_weight=checks.check_number("smooth_weight", smooth_weight),
        spacing=checks.check_spacing(spacing, dims),
    )


def folding_loss(
    ddf: torch.Tensor,
    *,
    spacing: float | Sequence[float] | None = None,
    margin: float = 0.0,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """How far the Jacobian determinant falls below a margin: the mean of ``max(0, margin - det)``; 0 for no folding.

    ``det`` is that of :func:`jacobian_determinant`; no map of it is written. Where it is at least the margin, the
    gradient is 0.

    Args:
        ddf: (B, n, spatial...) with n spatial axes, displacements in voxels, or in mm with ``spacing``.
        spacing: mm per voxel, a positive number for all axes or one per axis (z, y, x), for a field in mm: divides the
            derivatives along an axis.
        margin: determinants below it count, any finite number. 0 counts folded voxels; a little more, such as 0.1,
            keeps voxels from coming close.
        reduction: ``"mean"`` over the voxels, ``"sum"``, or ``"none"`` for the map (B, 1, spatial...).

    Returns:
        A scalar, 0 or more, without unit; or the map for ``reduction="none"``. The mean of an empty batch is NaN.

    Raises:
        TypeError: the field is not a floating-point tensor.
        ValueError: wrong number of components, a bad spacing or margin, an unknown reduction.
    """
    dims = checks.check_field("ddf", ddf)
    return FOLDING(
        ddf,
        spacing=checks.check_spacing(spacing, dims),
        margin=checks.check_number("margin", margin),
        reduction=checks.check_reduction(reduction),
    )


def mutual_information_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    num_bins: int = 32,
    kernel: ParzenKernel = "b-spline",
    normalized: bool = False,
    sigma_ratio: float = 0.5,
    reduction: Reduction = "mean",
    smooth_nr: float = 1e-7,
    smooth_dr: float = 1e-7,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mutual information of the intensities, negated, in nats: lower is more alike, 0 is no relation.

    ``-sum p log((p + smooth_nr) / (p_a p_b + smooth_dr) + smooth_dr)`` with the joint distribution ``p`` of a batch
    item, all its channels together: MONAI 1.6's ``GlobalMutualInformationLoss``. A joint histogram counts each voxel by
    a window over the bins of either image (Parzen windows).

    Args:
        pred: (B, C, spatial...) with 1, 2 or 3 spatial dimensions, for example the warped image.
        target: same shape, dtype and device as ``pred``, for example the fixed image.
        num_bins: bins per image, at least 2; for ``"b-spline"`` at least 6, four of which lie around the values.
        kernel: ``"b-spline"`` (Mattes): bins over the range of the values in the batch, whatever it is; a cubic
            B-spline for ``pred``, and a box for ``target``, which gets a gradient of 0. ``"gaussian"``: bins over
            [0, 1], values outside count as 0 or 1; a gaussian for both images, which both get a gradient.
        normalized: ``-(H_a + H_b + smooth_nr) / (H_ab + smooth_dr)`` instead, with the entropies H: from -1, no
            relation, to -2, a perfect one.
        sigma_ratio: standard deviation of the gaussian in bins, above 0.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"`` for one value per item.
        smooth_nr: added to the numerator, at least 0.
        smooth_dr: added to the denominator, and within the logarithm; above 0.
        mask: (B, 1 or C, spatial...), any real dtype, at least 0; weighs the voxels. Where it is 0, a voxel is left
            out, also from the range of values, whatever its value. An item whose mask is 0 everywhere counts 0, with
            zero gradients. It gets no gradient.

    Returns:
        A scalar, or (B,) for ``reduction="none"``. The mean of an empty batch is NaN.

    Raises:
        TypeError: an input is not a floating-point tensor; ``num_bins`` is no integer.
        ValueError: shapes, dtypes or devices differ; too few bins; an unknown name; a number out of its range.
    """
    checks.check_pair("pred", pred, "target", target)
    kernel = checks.check_choice("kernel", kernel, PARZEN_KERNELS)
    return MUTUAL_INFORMATION(
        pred,
        target,
        checks.check_mask(mask, pred),
        num_bins=checks.check_bins(num_bins, kernel),
        kernel_type=kernel,
        normalized=bool(normalized),
        sigma_ratio=checks.check_positive("sigma_ratio", sigma_ratio),
        reduction=checks.check_reduction(reduction),
        smooth_nr=checks.check_number("smooth_nr", smooth_nr, least=0.0),
        smooth_dr=checks.check_positive("smooth_dr", smooth_dr),
    )


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    LNCC.name: lncc_loss,
    MIND.name: mind_loss,
    GRADIENT_SMOOTHNESS.name: gradient_smoothness_loss,
    BENDING_ENERGY.name: bending_energy_loss,
    DVF_MSE.name: dvf_mse_loss,
    DVF_SUPERVISION.name: dvf_supervision_loss,
    FOLDING.name: folding_loss,
    MUTUAL_INFORMATION.name: mutual_information_loss,
}
"""The function of each loss, by the op's name."""

FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {**LOSSES, **fields.FUNCTIONS}
"""The function of each op that has a gradient, by the op's name."""


def explain(op: str | Callable[..., Any], *tensors: torch.Tensor, **arguments: Any) -> dispatch.Explanation:
    """Which backend would run a call, and why not the others; ``print`` the answer.

    Args:
        op: a function or module that calls an op, or the name of one: a key of ``FUNCTIONS``, or
            ``"field_adam"``.
        tensors: its tensors.
        arguments: its keyword arguments.

    Raises:
        TypeError, ValueError: as the function would.
    """
    if isinstance(op, str):
        named = {**FUNCTIONS, **optim.FUNCTIONS}
        if op not in named:
            raise ValueError(f"unknown op {op!r}; valid: {', '.join(sorted(named))}")
        op = named[op]
    return dispatch.explain(op, *tensors, **arguments)
