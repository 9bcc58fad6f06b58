"""The folding loss in plain PyTorch: the oracle of every other backend."""

from __future__ import annotations

import torch

from usreg_kernels.ops.jacobian_determinant import reference as jacobian_determinant
from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.reduction import reduce_map, reduction_gradient


def loss_like(ddf: torch.Tensor, *, reduction: str, **params: object) -> torch.Tensor:
    """An uninitialised loss: (B, 1, spatial...) for ``none``, else a scalar."""
    if reduction == "none":
        return jacobian_determinant.map_like(ddf)
    return ddf.new_empty((), dtype=loss_dtype(ddf.dtype))


def forward(ddf: torch.Tensor, *, spacing: list[float] | None, margin: float, reduction: str) -> torch.Tensor:
    """The reduced ``max(0, margin - determinant)``; NaN stays NaN."""
    found = jacobian_determinant.forward(ddf.to(compute_dtype(ddf)), spacing=spacing)
    values = torch.where(found >= margin, 0.0, margin - found)
    return reduce_map(values, None, reduction).to(loss_dtype(ddf.dtype))


def backward(
    grad_output: torch.Tensor,
    ddf: torch.Tensor,
    *,
    needs_grad: list[bool],
    spacing: list[float] | None,
    margin: float,
    reduction: str,
) -> list[torch.Tensor]:
    """The gradient of the determinant, where this is below the margin, times minus the incoming one."""
    if not needs_grad[0]:
        return []
    u = ddf.to(compute_dtype(ddf))
    matrix = jacobian_determinant.jacobian(u, spacing)
    found = jacobian_determinant.determinant(matrix)
    shape = torch.Size((u.shape[0], 1, *u.shape[2:]))
    incoming = reduction_gradient(grad_output.to(u.dtype), shape, None, reduction)[:, 0]
    return [jacobian_determinant.gradient(-incoming, matrix, spacing, idle=found >= margin).to(ddf.dtype)]
