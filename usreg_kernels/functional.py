"""The losses as functions: their contract, and the checks of their arguments.

Shapes are (B, C, D, H, W), or fewer spatial axes; axes and vector components are in the order z, y, x. Inputs are
float64, float32, float16 or bfloat16. A loss is float64 for float64 input and float32 for every other; a gradient has
the dtype of its input. Nothing waits for the device.

Double backward works, and so do the transforms of ``torch.func``, forward-mode derivatives and several gradients at
once (``is_grads_batched``): these compute through the plain PyTorch reference, whatever backend was chosen. A tensor
subclass such as MONAI's ``MetaTensor`` counts as the tensor that it holds; a loss is always a plain tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch

from usreg_kernels import checks, dispatch
from usreg_kernels.ops.bending_energy.op import OP as BENDING_ENERGY
from usreg_kernels.ops.contract import Op, Params
from usreg_kernels.ops.dvf_mse.op import OP as DVF_MSE
from usreg_kernels.ops.dvf_supervision.op import OP as DVF_SUPERVISION
from usreg_kernels.ops.gradient_smoothness.op import OP as GRADIENT_SMOOTHNESS
from usreg_kernels.ops.lncc.op import OP as LNCC

PENALTIES = ("l2", "l1")
SCHEMES = ("forward", "central")

Checked = tuple[Op, tuple[torch.Tensor, ...], "torch.Tensor | None", Params]


def lncc_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    kernel_size: int | Sequence[int] = 3,
    kernel_type: str = "rectangular",
    reduction: str = "mean",
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
    op, tensors, mask, params = _check_lncc(
        pred, target, kernel_size, kernel_type, reduction, smooth_nr, smooth_dr, mask
    )
    return op(tensors, mask, params)


def gradient_smoothness_loss(
    dvf: torch.Tensor,
    *,
    penalty: str = "l2",
    scheme: str = "forward",
    spacing: float | Sequence[float] | None = None,
    normalize: bool = False,
    reduction: str = "mean",
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
    op, tensors, mask, params = _check_gradient_smoothness(dvf, penalty, scheme, spacing, normalize, reduction)
    return op(tensors, mask, params)


def bending_energy_loss(dvf: torch.Tensor, *, normalize: bool = False, reduction: str = "mean") -> torch.Tensor:
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
    op, tensors, mask, params = _check_bending_energy(dvf, normalize, reduction)
    return op(tensors, mask, params)


def dvf_mse_loss(
    pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, mask: torch.Tensor | None = None, reduction: str = "mean"
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
    op, tensors, mask, params = _check_dvf_mse(pred_dvf, gt_dvf, mask, reduction)
    return op(tensors, mask, params)


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
    op, tensors, mask, params = _check_dvf_supervision(pred_dvf, gt_dvf, mse_weight, smooth_weight, spacing)
    return op(tensors, mask, params)


def explain(op: str, *tensors: torch.Tensor, **arguments: Any) -> dispatch.Explanation:
    """Which backend would run a call, and why not the others; ``print`` the answer.

    Args:
        op: ``"lncc"``, ``"gradient_smoothness"``, ``"bending_energy"``, ``"dvf_mse"`` or ``"dvf_supervision"``.
        tensors: the loss function's tensors.
        arguments: its keyword arguments.

    Raises:
        TypeError, ValueError: as the loss function would.
    """
    if op not in _PUBLIC:
        raise ValueError(f"unknown op {op!r}; valid: {', '.join(sorted(_PUBLIC))}")
    function, check = _PUBLIC[op]
    call = signature(function).bind(*tensors, **arguments)
    call.apply_defaults()
    found, inputs, mask, params = check(**call.arguments)
    return dispatch.explain_call(found.name, found.arguments(inputs, mask), params)


def _check_lncc(
    pred: torch.Tensor,
    target: torch.Tensor,
    kernel_size: int | Sequence[int],
    kernel_type: str,
    reduction: str,
    smooth_nr: float,
    smooth_dr: float,
    mask: torch.Tensor | None,
) -> Checked:
    dims = checks.check_pair("pred", pred, "target", target)
    params = {
        "kernel_size": checks.check_kernel_size(kernel_size, dims),
        "kernel_type": checks.check_kernel_type(kernel_type),
        "reduction": checks.check_reduction(reduction),
        "smooth_nr": checks.check_number("smooth_nr", smooth_nr),
        "smooth_dr": checks.check_number("smooth_dr", smooth_dr, least=0.0),
    }
    return LNCC, (pred, target), checks.check_mask(mask, pred), params


def _check_gradient_smoothness(
    dvf: torch.Tensor,
    penalty: str,
    scheme: str,
    spacing: float | Sequence[float] | None,
    normalize: bool,
    reduction: str,
) -> Checked:
    scheme = checks.check_choice("scheme", scheme, SCHEMES)
    dims = checks.check_field("dvf", dvf, smallest=3 if scheme == "central" else 0)
    params = {
        "penalty": checks.check_choice("penalty", penalty, PENALTIES),
        "scheme": scheme,
        "spacing": checks.check_spacing(spacing, dims),
        "normalize": bool(normalize),
        "reduction": checks.check_reduction(reduction),
    }
    return GRADIENT_SMOOTHNESS, (dvf,), None, params


def _check_bending_energy(dvf: torch.Tensor, normalize: bool, reduction: str) -> Checked:
    checks.check_field("dvf", dvf, smallest=3)
    params = {"normalize": bool(normalize), "reduction": checks.check_reduction(reduction)}
    return BENDING_ENERGY, (dvf,), None, params


def _check_dvf_mse(pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, mask: torch.Tensor | None, reduction: str) -> Checked:
    checks.check_pair("pred_dvf", pred_dvf, "gt_dvf", gt_dvf)
    params = {"reduction": checks.check_reduction(reduction)}
    return DVF_MSE, (pred_dvf, gt_dvf), checks.check_mask(mask, pred_dvf), params


def _check_dvf_supervision(
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    mse_weight: float,
    smooth_weight: float,
    spacing: float | Sequence[float] | None,
) -> Checked:
    checks.check_pair("pred_dvf", pred_dvf, "gt_dvf", gt_dvf)
    dims = checks.check_field("pred_dvf", pred_dvf, smallest=0)
    params = {
        "mse_weight": checks.check_number("mse_weight", mse_weight),
        "smooth_weight": checks.check_number("smooth_weight", smooth_weight),
        "spacing": checks.check_spacing(spacing, dims),
    }
    return DVF_SUPERVISION, (pred_dvf, gt_dvf), None, params


_PUBLIC: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., Checked]]] = {
    "lncc": (lncc_loss, _check_lncc),
    "gradient_smoothness": (gradient_smoothness_loss, _check_gradient_smoothness),
    "bending_energy": (bending_energy_loss, _check_bending_energy),
    "dvf_mse": (dvf_mse_loss, _check_dvf_mse),
    "dvf_supervision": (dvf_supervision_loss, _check_dvf_supervision),
}
