"""The folding loss in Triton. Forward reads the field once and writes no map.

Backward writes the slope of each voxel first, which is 0 wherever the field does not fold; the gradient then reads the
field only around the others. It saves nothing in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.folding.reference import loss_like
from usreg_kernels.ops.jacobian_determinant.reference import map_like
from usreg_kernels.ops.jacobian_determinant.triton import (
    BLOCK,
    GRADIENT_BLOCK,
    determinant,
    place,
    scales,
    write_gradient,
)
from usreg_kernels.ops.triton_fields import Weights, add_up, gradient_weights, write


@triton.jit
def sum_shortfalls(
    ddf, loss_map, partials, pieces, D, H: tl.constexpr, W: tl.constexpr, scale_z, scale_y, scale_x, margin,
    DIMS: tl.constexpr, KEEP_MAP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How far the determinants of this program's voxels fall below the margin, or the sum of it; NaN stays NaN."""
    start, at, voxels, inside, z, y, x = place(pieces, D, H, W, DIMS, WIDE, BLOCK)
    found = determinant(ddf + start, voxels, inside, z, y, x, D, H, W, scale_z, scale_y, scale_x, DIMS)
    value = tl.where(found >= margin, 0.0, margin - found)
    if KEEP_MAP:
        tl.store(loss_map + at, value, mask=inside)
    else:
        tl.store(partials + tl.program_id(0), tl.sum(tl.where(inside, value, 0.0)))


@triton.jit
def write_slopes(
    grad_output, ddf, slopes, pieces, D, H: tl.constexpr, W: tl.constexpr, scale_z, scale_y, scale_x, margin, factor,
    DIMS: tl.constexpr, HAS_MAP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The derivative of the loss by the determinants of this program's voxels."""
    start, at, voxels, inside, z, y, x = place(pieces, D, H, W, DIMS, WIDE, BLOCK)
    found = determinant(ddf + start, voxels, inside, z, y, x, D, H, W, scale_z, scale_y, scale_x, DIMS)
    if HAS_MAP:
        grad = tl.load(grad_output + at, mask=inside, other=0.0)
    else:
        grad = tl.load(grad_output) * factor
    tl.store(slopes + at, tl.where(found >= margin, 0.0, -grad), mask=inside)


def forward(
    ddf: torch.Tensor, *, needs_grad: list[bool], spacing: list[float] | None, margin: float, reduction: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss."""
    field = ddf.contiguous()
    voxels = field[:, :1]  # a program takes all components
    weights = Weights([*scales(field, spacing), margin], voxels.numel() if reduction == "mean" else 1)
    if reduction != "none":
        return add_up(sum_shortfalls, [field, None], voxels, weights, KEEP_MAP=False, BLOCK=BLOCK), []
    loss_map = loss_like(field, reduction=reduction)
    write(sum_shortfalls, [field, loss_map, None], voxels, weights.terms, KEEP_MAP=True, BLOCK=BLOCK)
    return loss_map, []


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    ddf: torch.Tensor,
    *,
    needs_grad: list[bool],
    spacing: list[float] | None,
    margin: float,
    reduction: str,
) -> list[torch.Tensor]:
    """The gradient, from the field once more."""
    if not needs_grad[0]:
        return []
    field = ddf.contiguous()
    slopes, gradient, along = map_like(field), torch.empty_like(field), scales(field, spacing)
    (factor,) = gradient_weights(Weights([1.0], slopes.numel() if reduction == "mean" else 1))
    tensors = [grad_output.contiguous(), field, slopes]
    write(write_slopes, tensors, slopes, [*along, margin, factor], HAS_MAP=grad_output.ndim > 0, BLOCK=BLOCK)
    write(write_gradient, [field, slopes, gradient], slopes, along, SPARSE=True, BLOCK=GRADIENT_BLOCK)
    return [gradient]
