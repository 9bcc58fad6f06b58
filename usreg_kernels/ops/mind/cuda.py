"""The MIND loss in CUDA C++ (``csrc/cuda/mind``): slabs of both images, side by side."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES, CompiledBackend, only_needed
from usreg_kernels.ops.mind import saving
from usreg_kernels.ops.operator import LIBRARY

_IMAGES = "Tensor pred, Tensor target, Tensor? mask, int radius, int dilation"
_FLAGS = "bool pred_grad, bool target_grad"
LIBRARY.define(f"mind_cuda_forward({_IMAGES}, int reduction, {_FLAGS}) -> (Tensor, Tensor, Tensor?, Tensor?)")
LIBRARY.define(f"mind_cuda_backward(Tensor grad_output, {_IMAGES}, {_FLAGS}) -> (Tensor?, Tensor?)")


class Cuda(CompiledBackend):
    """Forward computes the gradients along with the loss; those of a map are computed by backward."""

    overwrites_saved = True

    def forward(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        radius: int,
        dilation: int,
        reduction: str,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss; to save, the divisor and the gradients of the sum."""
        flags = needs_grad if saving.saves(needs_grad, reduction) else [False, False]
        loss, divisor, *gradients = self.kernels.mind_cuda_forward(
            pred, target, mask, radius, dilation, REDUCTION_CODES[reduction], *flags
        )
        return loss, [divisor, *only_needed(tuple(gradients), flags)] if any(flags) else []

    def saved_like(self, *tensors: Any, **arguments: Any) -> list[torch.Tensor]:
        """The divisor, and the gradients of the sum."""
        return saving.saved_like(*tensors, **arguments)

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        radius: int,
        dilation: int,
        reduction: str,
        may_overwrite: bool = False,
    ) -> list[torch.Tensor]:
        """The saved gradients times ``grad_output``; of a map, from the images."""
        if saved:
            return saving.scaled(grad_output, saved, pred.dtype, needs_grad, may_overwrite)
        found = self.kernels.mind_cuda_backward(grad_output, pred, target, mask, radius, dilation, *needs_grad)
        return only_needed(found, needs_grad)
