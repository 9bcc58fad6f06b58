"""Supervision of a displacement field in compiled code: the compiled kernels of its two terms, one after the other."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from usreg_kernels import dispatch
from usreg_kernels.ops.dvf_supervision.reference import smoothness_params


def _terms(name: str) -> tuple[dispatch.Backend, dispatch.Backend]:
    """The two terms' backends of a name."""
    return dispatch.get_backend("dvf_mse", name), dispatch.get_backend("gradient_smoothness", name)


def forward(
    name: str,
    pred_dvf: torch.Tensor,
    gt_dvf: torch.Tensor,
    *,
    needs_grad: list[bool],
    mse_weight: float,
    smooth_weight: float,
    spacing: list[float] | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and what DVF MSE saves; the smoothness saves nothing."""
    mse, smoothness = _terms(name)
    error, saved = mse.forward(pred_dvf, gt_dvf, None, needs_grad=needs_grad, reduction="mean")
    roughness, _ = smoothness.forward(pred_dvf, needs_grad=needs_grad[:1], **smoothness_params(spacing))
    return mse_weight * error + smooth_weight * roughness, saved


def saved_like(
    name: str, pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, needs_grad: list[bool], **_: Any
) -> list[torch.Tensor]:
    """What DVF MSE saves."""
    return _terms(name)[0].saved_like(pred_dvf, gt_dvf, None, needs_grad=needs_grad, reduction="mean")


def backward(
    name: str,
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
    mse, smoothness = _terms(name)
    wide = torch.promote_types(pred_dvf.dtype, torch.float32)
    pred, gt = pred_dvf.to(wide), gt_dvf.to(wide)
    gradients = mse.backward(mse_weight * grad_output, saved, pred, gt, None, needs_grad=needs_grad, reduction="mean")
    if needs_grad[0]:
        incoming, params = smooth_weight * grad_output, smoothness_params(spacing)
        gradients[0] += smoothness.backward(incoming, [], pred, needs_grad=[True], **params)[0]
    return [gradient.to(pred_dvf.dtype) for gradient in gradients]


def _missing(name: str) -> str | None:
    return _terms(name)[0].missing()


def _declines(name: str, tensors: dispatch.Tensors, **params: Any) -> str | None:
    return _terms(name)[0].declines(tensors, reduction="mean")


for _name in ("cpu", "cuda"):
    dispatch.register_backend(
        "dvf_supervision",
        dispatch.Backend(
            _name,
            partial(forward, _name),
            partial(backward, _name),
            partial(saved_like, _name),
            missing=partial(_missing, _name),
            declines=partial(_declines, _name),
        ),
    )
