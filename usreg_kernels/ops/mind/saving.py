"""What the backends for GPUs save of the MIND loss: the divisor of a mean, and the gradients of the sum.

Only the device knows the sum of a mask: the gradients wait for backward to be divided by it. Reduction ``none``, whose
``grad_output`` is a map, saves nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.operator import loss_dtype


def saves(needs_grad: list[bool], reduction: str) -> bool:
    """Whether forward saves anything."""
    return any(needs_grad) and reduction != "none"


def saved_like(
    pred: torch.Tensor, target: torch.Tensor, *others: Any, needs_grad: list[bool], reduction: str, **params: Any
) -> list[torch.Tensor]:
    """The divisor, and the gradients that are needed, of the loss' dtype."""
    if not saves(needs_grad, reduction):
        return []
    gradients = [
        image.new_empty(image.shape, dtype=loss_dtype(image.dtype))
        for image, needed in zip((pred, target), needs_grad, strict=True)
        if needed
    ]
    return [pred.new_empty((), dtype=torch.float64), *gradients]


def scaled(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    dtype: torch.dtype,
    needs_grad: list[bool],
    may_overwrite: bool,
) -> list[torch.Tensor]:
    """The gradients that are still needed, times ``grad_output`` over the divisor; where they lie, if they may."""
    divisor, *gradients = saved
    if len(gradients) > 1:
        gradients = [gradient for gradient, needed in zip(gradients, needs_grad, strict=True) if needed]
    factor = (grad_output / divisor).to(grad_output.dtype)
    if may_overwrite and gradients[0].dtype == dtype:
        return [gradient.mul_(factor) for gradient in gradients]
    return [(gradient * factor).to(dtype) for gradient in gradients]
