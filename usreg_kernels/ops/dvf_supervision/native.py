"""Supervision of a displacement field in compiled code: the compiled kernels of its two terms, one after the other."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels import dispatch
from usreg_kernels.ops.dvf_supervision.reference import smoothness_params


def _register(name: str) -> None:
    """Register the backend that runs the two terms' backends of that name."""
    mse = dispatch.get_backend("dvf_mse", name)
    smoothness = dispatch.get_backend("gradient_smoothness", name)

    def saved_like(
        pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, needs_grad: list[bool], **_: Any
    ) -> list[torch.Tensor]:
        return mse.saved_like(pred_dvf, gt_dvf, None, needs_grad=needs_grad, reduction="mean")

    def forward(
        pred_dvf: torch.Tensor,
        gt_dvf: torch.Tensor,
        *,
        needs_grad: list[bool],
        mse_weight: float,
        smooth_weight: float,
        spacing: list[float] | None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        error, saved = mse.forward(pred_dvf, gt_dvf, None, needs_grad=needs_grad, reduction="mean")
        roughness, _ = smoothness.forward(pred_dvf, needs_grad=needs_grad[:1], **smoothness_params(spacing))
        return mse_weight * error + smooth_weight * roughness, saved

    def backward(
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
        wide = torch.promote_types(pred_dvf.dtype, torch.float32)  # the sum of the terms is rounded once
        pred, gt = pred_dvf.to(wide), gt_dvf.to(wide)
        gradients = mse.backward(
            mse_weight * grad_output, saved, pred, gt, None, needs_grad=needs_grad, reduction="mean"
        )
        if needs_grad[0]:
            incoming, params = smooth_weight * grad_output, smoothness_params(spacing)
            gradients[0] += smoothness.backward(incoming, [], pred, needs_grad=[True], **params)[0]
        return [gradient.to(pred_dvf.dtype) for gradient in gradients]

    def declines(tensors: dispatch.Tensors, **params: Any) -> str | None:
        return mse.declines(tensors, reduction="mean")

    dispatch.register_backend(
        "dvf_supervision",
        dispatch.Backend(name, forward, backward, saved_like, missing=mse.missing, declines=declines),
    )


_register("cpu")
