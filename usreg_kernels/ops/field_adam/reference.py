"""A step of Adam in plain PyTorch: the oracle of every other backend."""

from __future__ import annotations

import torch

from usreg_kernels.ops.operator import compute_dtype


def run(
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: torch.Tensor,
    field: torch.Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    longest: bool,
    replace: bool,
) -> None:
    """Update the moments and the number of steps; write the update to the field, or add it.

    The direction is that of the moments as they are stored, rounded to the field's dtype: a kernel reads them back.
    """
    dtype = compute_dtype(grad)
    step += 1
    count = step.to(dtype)
    gradient = grad.to(dtype)
    exp_avg.copy_(beta1 * exp_avg.to(dtype) + (1 - beta1) * gradient)
    exp_avg_sq.copy_(beta2 * exp_avg_sq.to(dtype) + (1 - beta2) * gradient**2)
    second = exp_avg_sq.to(dtype)
    direction = exp_avg.to(dtype) / (torch.sqrt(second / (1 - beta2**count)) + eps)
    scale = lr / (1 - beta1**count)
    if longest:
        scale = _scales(direction, second, lr)
    if replace:
        field.copy_(-scale * direction)
    else:
        field.copy_(field.to(dtype) - scale * direction)


def _scales(direction: torch.Tensor, exp_avg_sq: torch.Tensor, lr: float) -> torch.Tensor:
    """What makes the longest vector of each sample lr voxels long: (B, 1, 1...)."""
    # The last term is NaN where the square of a gradient has overflowed: the direction is 0 there.
    squares = (direction**2 + (exp_avg_sq - exp_avg_sq)).sum(1).flatten(1)
    square = squares.amax(1) if squares.shape[1] else squares.new_zeros(squares.shape[0])
    scales = torch.where(square.isfinite(), lr / square.sqrt(), torch.nan).masked_fill(square == 0, 0)
    return scales.view(-1, *[1] * (direction.ndim - 1))
