"""The compiled supervision of a displacement field: on CPUs one pass for both terms (``csrc/cpu/field_losses.cpp``).

On GPUs, the CUDA C++ kernels of the two terms run one after the other.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels import dispatch
from usreg_kernels.ops.contract import LIBRARY
from usreg_kernels.ops.dvf_supervision.reference import smoothness_params
from usreg_kernels.ops.gradient_smoothness.native import scales
from usreg_kernels.ops.native import register

_INPUTS = "Tensor pred_dvf, Tensor gt_dvf, float mse_weight, float smooth_weight, float[] scales"
LIBRARY.define(f"dvf_supervision_native_forward({_INPUTS}) -> Tensor")
LIBRARY.define(
    f"dvf_supervision_native_backward(Tensor grad_output, {_INPUTS}, bool pred_grad, bool gt_grad) "
    "-> (Tensor?, Tensor?)"
)


# ---- on CPUs ---------------------------------------------------------------------------------------------------------


def _arguments(
    pred_dvf: torch.Tensor, mse_weight: float, smooth_weight: float, spacing: list[float] | None
) -> tuple[Any, ...]:
    """The operators' arguments that are no tensors, but for the flags."""
    return mse_weight, smooth_weight, scales(pred_dvf.shape, None if spacing is None else tuple(spacing), False)


def forward(
    kernels: Any, pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss; nothing is saved."""
    return kernels.dvf_supervision_native_forward(pred_dvf, gt_dvf, *_arguments(pred_dvf, **params)), []


def backward(
    kernels: Any,
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    *,
    needs_grad: list[bool],
    **params: Any,
) -> list[torch.Tensor]:
    """Both gradients from one pass over the fields."""
    gradients = kernels.dvf_supervision_native_backward(
        grad_output, pred_dvf, gt_dvf, *_arguments(pred_dvf, **params), *needs_grad
    )
    return [gradient for gradient, needed in zip(gradients, needs_grad, strict=True) if needed]


register("dvf_supervision", forward, backward, names=("cpu",))


# ---- on GPUs: term by term -------------------------------------------------------------------------------------------


def _terms() -> tuple[dispatch.Backend, dispatch.Backend]:
    """The two terms' backends."""
    return dispatch.get_backend("dvf_mse", "cuda"), dispatch.get_backend("gradient_smoothness", "cuda")


def forward_by_terms(
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    *,
    needs_grad: list[bool],
    mse_weight: float,
    smooth_weight: float,
    spacing: list[float] | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and what DVF MSE saves; the smoothness saves nothing."""
    mse, smoothness = _terms()
    error, saved = mse.forward(pred_dvf, gt_dvf, None, needs_grad=needs_grad, reduction="mean")
    roughness, _ = smoothness.forward(pred_dvf, needs_grad=needs_grad[:1], **smoothness_params(spacing))
    return mse_weight * error + smooth_weight * roughness, saved


def saved_like_by_terms(
    pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, needs_grad: list[bool], **_: Any
) -> list[torch.Tensor]:
    """What DVF MSE saves."""
    return _terms()[0].saved_like(pred_dvf, gt_dvf, None, needs_grad=needs_grad, reduction="mean")


def backward_by_terms(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    *,
    needs_grad: list[bool],
    mse_weight: float,
    smooth_weight: float,
    spacing: list[float] | None,
) -> list[torch.Tensor]:
    """The sum of the terms' gradients, in float32 or wider, so that it is rounded once."""
    mse, smoothness = _terms()
    wide = torch.promote_types(pred_dvf.dtype, torch.float32)
    pred, gt = pred_dvf.to(wide), gt_dvf.to(wide)
    gradients = mse.backward(mse_weight * grad_output, saved, pred, gt, None, needs_grad=needs_grad, reduction="mean")
    if needs_grad[0]:
        incoming, params = smooth_weight * grad_output, smoothness_params(spacing)
        gradients[0] += smoothness.backward(incoming, [], pred, needs_grad=[True], **params)[0]
    return [gradient.to(pred_dvf.dtype) for gradient in gradients]


def _missing() -> str | None:
    return _terms()[0].missing()


def _declines(tensors: dispatch.Tensors, **params: Any) -> str | None:
    return _terms()[0].declines(tensors, reduction="mean")


dispatch.register_backend(
    "dvf_supervision",
    dispatch.Backend(
        "cuda",
        forward_by_terms,
        backward_by_terms,
        saved_like_by_terms,
        missing=_missing,
        declines=_declines,
    ),
)
