"""From a map of values to a loss: the three reductions, the mask, and their adjoint."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from usreg_kernels.ops.operator import loss_dtype

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


def loss_like(first: torch.Tensor, *others: object, reduction: str = "mean", **params: object) -> torch.Tensor:
    """An uninitialised loss: of the input's shape for ``none``, else a scalar."""
    return first.new_empty(first.shape if reduction == "none" else (), dtype=loss_dtype(first.dtype))


_ROW = 4096


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of all values, in an order that depends only on their number, not on threads or strides."""
    values = values.reshape(-1)
    while values.numel() > _ROW:
        values = F.pad(values, (0, -values.numel() % _ROW)).view(-1, _ROW).sum(dim=1)
    return values.sum()


def mask_weight(shape: torch.Size, mask: torch.Tensor | None) -> torch.Tensor | float:
    """What ``mean`` divides by: the number of values, or the sum of the mask broadcast over channels.

    An all-zero mask counts as weight 1: the masked sum is 0 then, and so are the loss and its gradient.
    """
    if mask is None:
        return float(shape.numel())
    channels = shape[1] // mask.shape[1] if mask.shape[1] else 0
    weight = total(mask) * channels
    return torch.where(weight == 0, torch.ones_like(weight), weight)


def reduce_map(values: torch.Tensor, mask: torch.Tensor | None, reduction: str) -> torch.Tensor:
    """Reduce a map (B, C, spatial...) with a mask (B, 1 or C, spatial...) that weighs it.

    ``none``: mask * values; ``sum``: their sum; ``mean``: the sum over the sum of the mask (over the number of values
    without one). The mean of an empty map is NaN, as in torch.
    """
    if mask is not None:
        values = values * mask
    if reduction == "none":
        return values
    if reduction == "sum":
        return total(values)
    return total(values) / (mask_weight(values.shape, mask) if values.numel() else 0.0)


def reduction_gradient(
    grad_output: torch.Tensor, shape: torch.Size, mask: torch.Tensor | None, reduction: str
) -> torch.Tensor:
    """The derivative of :func:`reduce_map` with respect to ``values``, times ``grad_output``: a map of ``shape``."""
    if reduction == "mean":
        grad_output = grad_output / mask_weight(shape, mask) if shape.numel() else grad_output
    weights = grad_output.expand(shape)
    return weights if mask is None else weights * mask
