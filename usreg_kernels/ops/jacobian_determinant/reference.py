"""The Jacobian determinant of x + ddf(x) in plain PyTorch: the oracle of every other backend.

Derivatives are those of ``torch.gradient``: central differences inside, one-sided ones at the borders. An axis of one
voxel has the derivative 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from usreg_kernels.ops.operator import compute_dtype, loss_dtype

Matrix = list[list[torch.Tensor]]
"""Tensors (B, spatial...), by row and column."""


def derivative(u: torch.Tensor, axis: int) -> torch.Tensor:
    """The differences of neighbours along an axis, per voxel."""
    size = u.shape[axis]
    if size < 2:
        return torch.zeros_like(u)
    steps = torch.diff(u, dim=axis)
    inside = (u.narrow(axis, 2, size - 2) - u.narrow(axis, 0, size - 2)) / 2
    return torch.cat([steps.narrow(axis, 0, 1), inside, steps.narrow(axis, size - 2, 1)], dim=axis)


def derivative_adjoint(d: torch.Tensor, axis: int) -> torch.Tensor:
    """The transpose of :func:`derivative`.

    A voxel enters the derivatives of the two beside it. At a border it also enters its own, which is as if the value
    there continued beyond the border with the other sign.
    """
    size = d.shape[axis]
    if size < 2:
        return torch.zeros_like(d)
    first, last = d.narrow(axis, 0, 1), d.narrow(axis, size - 1, 1)
    extended = torch.cat([-first, first, d.narrow(axis, 1, size - 2) / 2, last, -last], dim=axis)
    return extended.narrow(axis, 0, size) - extended.narrow(axis, 2, size)


def axis_scales(dims: int, spacing: Sequence[float] | None) -> list[float]:
    """What multiplies the derivatives along each axis."""
    return [1.0] * dims if spacing is None else [1.0 / mm for mm in spacing]


def jacobian(u: torch.Tensor, spacing: Sequence[float] | None) -> Matrix:
    """The identity plus the derivative of each component (row) along each axis (column) of u (B, n, spatial...)."""
    dims = u.ndim - 2
    columns = [derivative(u, axis + 2) * scale for axis, scale in enumerate(axis_scales(dims, spacing))]
    return [[columns[j][:, i] + (1.0 if i == j else 0.0) for j in range(dims)] for i in range(dims)]


def cofactors(matrix: Matrix) -> Matrix:
    """The derivative of the determinant by each entry of the matrix."""
    if len(matrix) == 1:
        return [[torch.ones_like(matrix[0][0])]]
    if len(matrix) == 2:
        (a, b), (c, d) = matrix
        return [[d, -c], [-b, a]]
    return [_cross(matrix[1], matrix[2]), _cross(matrix[2], matrix[0]), _cross(matrix[0], matrix[1])]


def _cross(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def determinant(matrix: Matrix) -> torch.Tensor:
    """The determinant (B, spatial...) of the matrix of each voxel."""
    first, *others = [entry * factor for entry, factor in zip(matrix[0], cofactors(matrix)[0], strict=True)]
    for term in others:
        first = first + term
    return first


def gradient(
    slope: torch.Tensor, matrix: Matrix, spacing: Sequence[float] | None, idle: torch.Tensor | None = None
) -> torch.Tensor:
    """The gradient to the field, from that to the determinant (B, spatial...); ``idle``: voxels that give none."""
    scales, components = axis_scales(len(matrix), spacing), []
    for row in cofactors(matrix):
        products = [slope * entry if idle is None else torch.where(idle, 0.0, slope * entry) for entry in row]
        pulls = [derivative_adjoint(product * scales[j], j + 1) for j, product in enumerate(products)]
        total = pulls[0]
        for pull in pulls[1:]:
            total = total + pull
        components.append(total)
    return torch.stack(components, dim=1)


def map_like(ddf: torch.Tensor, **params: object) -> torch.Tensor:
    """An uninitialised map (B, 1, spatial...) for a field."""
    return ddf.new_empty((ddf.shape[0], 1, *ddf.shape[2:]), dtype=loss_dtype(ddf.dtype))


def forward(ddf: torch.Tensor, *, spacing: list[float] | None) -> torch.Tensor:
    """The map (B, 1, spatial...)."""
    found = determinant(jacobian(ddf.to(compute_dtype(ddf)), spacing))
    return found.unsqueeze(1).to(loss_dtype(ddf.dtype))


def backward(
    grad_output: torch.Tensor, ddf: torch.Tensor, *, needs_grad: list[bool], spacing: list[float] | None
) -> list[torch.Tensor]:
    """The cofactors times the incoming gradient, through the transposed differences."""
    if not needs_grad[0]:
        return []
    u = ddf.to(compute_dtype(ddf))
    return [gradient(grad_output.to(u.dtype)[:, 0], jacobian(u, spacing), spacing).to(ddf.dtype)]
