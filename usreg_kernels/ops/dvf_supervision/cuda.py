"""Supervision of a displacement field in CUDA C++: the kernels of its two terms, one after the other."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels import dispatch
from usreg_kernels.backend import Backend, Tensors
from usreg_kernels.ops.dvf_supervision.reference import smoothness_params


def _terms() -> tuple[Backend, Backend]:
    """The two terms' backends."""
    return dispatch.get_backend("dvf_mse", "cuda"), dispatch.get_backend("gradient_smoothness", "cuda")


class Cuda(Backend):
    """The sum of two losses, which are computed and differentiated apart."""

    name = "cuda"

    def forward(
        self,
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

    def saved_like(
        self, pred_dvf: torch.Tensor, gt_dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any
    ) -> list[torch.Tensor]:
        """What DVF MSE saves."""
        return _terms()[0].saved_like(pred_dvf, gt_dvf, None, needs_grad=needs_grad, reduction="mean")

    def backward(
        self,
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
        incoming = mse_weight * grad_output
        gradients = mse.backward(incoming, saved, pred, gt, None, needs_grad=needs_grad, reduction="mean")
        if needs_grad[0]:
            incoming, params = smooth_weight * grad_output, smoothness_params(spacing)
            gradients[0] += smoothness.backward(incoming, [], pred, needs_grad=[True], **params)[0]
        return [gradient.to(pred_dvf.dtype) for gradient in gradients]

    def missing(self) -> str | None:
        """As for its terms."""
        return _terms()[0].missing()

    def declines(self, tensors: Tensors, **params: Any) -> str | None:
        """As for its terms."""
        return _terms()[0].declines(tensors, reduction="mean")
