"""The MIND loss in plain PyTorch: the oracle of every other backend.

``mean over channels and voxels of (MIND(pred) - MIND(target))^2``, with the descriptor of
:mod:`usreg_kernels.ops.mind_ssc.reference`.
"""

from __future__ import annotations

import torch

from usreg_kernels.ops.mind_ssc.reference import describe, gradient
from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.reduction import reduce_map, reduction_gradient


def forward(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    radius: int,
    dilation: int,
    reduction: str,
) -> torch.Tensor:
    """The squared difference of the descriptors, averaged over their channels, and reduced."""
    p, t = (describe(x.to(compute_dtype(x)), radius, dilation).values for x in (pred, target))
    return reduce_map(((p - t) ** 2).mean(dim=2), mask, reduction).to(loss_dtype(pred.dtype))


def backward(
    grad_output: torch.Tensor,
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    radius: int,
    dilation: int,
    reduction: str,
) -> list[torch.Tensor]:
    """The gradients that are needed."""
    images = pred, target
    found = [describe(x.to(compute_dtype(x)), radius, dilation) for x in images]
    values = found[0].values
    weight = reduction_gradient(grad_output.to(values.dtype), pred.shape, mask, reduction)
    incoming = (2.0 / values.shape[2]) * weight.unsqueeze(2) * (values - found[1].values)
    signed = incoming, -incoming
    return [
        gradient(signed[i], found[i], radius, dilation).to(image.dtype)
        for i, image in enumerate(images)
        if needs_grad[i]
    ]
