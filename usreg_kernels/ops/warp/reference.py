"""Warp of an image in plain PyTorch: the oracle of every other backend.

An output voxel x looks at the coordinate ``affine(x) + ddf(x)`` of the image. Three steps lead to its value. The
padding mode brings the coordinate into the image (:func:`_pad`). The coordinate picks the 2^n voxels around it, with
their weights (:func:`_corners`). The value is their weighted sum. Derivatives at a kink are those of ``grid_sample``:
from the right at a voxel's centre, 0 where ``border`` or ``reflection`` stops a coordinate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from usreg_kernels.ops.operator import compute_dtype, loss_dtype


def warped_like(image: torch.Tensor, *others: torch.Tensor | None, size: list[int], **params: Any) -> torch.Tensor:
    """An empty image of the result's shape and dtype."""
    return image.new_empty((*image.shape[:2], *size), dtype=loss_dtype(image.dtype))


def forward(
    image: torch.Tensor,
    ddf: torch.Tensor | None,
    affine: torch.Tensor | None,
    *,
    size: list[int],
    mode: str,
    padding_mode: str,
) -> torch.Tensor:
    """The warped image (B, C, size...); NaN where a coordinate is not finite."""
    dtype = compute_dtype(image)
    axes, finite = _axes(image, ddf, affine, size, mode, padding_mode)
    flat = _flat(image.to(dtype))
    warped = flat.new_zeros((*image.shape[:2], finite.shape[1]))
    for corner in _corners(axes, image.shape[2:]):
        warped = warped + corner.weight.unsqueeze(1) * _gather(flat, corner)
    warped = torch.where(finite.unsqueeze(1), warped, torch.nan)
    return warped.reshape(*image.shape[:2], *size).to(loss_dtype(image.dtype))


def backward(
    grad_output: torch.Tensor,
    image: torch.Tensor,
    ddf: torch.Tensor | None,
    affine: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    size: list[int],
    mode: str,
    padding_mode: str,
) -> list[torch.Tensor]:
    """The gradients to the image, the field and the affine, of those that are needed.

    Where a coordinate is not finite the field's gradient is NaN, and the image gets nothing.
    """
    dtype = compute_dtype(image)
    axes, finite = _axes(image, ddf, affine, size, mode, padding_mode)
    flat, grad = _flat(image.to(dtype)), _flat(grad_output.to(dtype))
    reaching = torch.where(finite.unsqueeze(1), grad, 0.0)
    image_grad = torch.zeros_like(flat)
    slopes = [torch.zeros_like(axis.fraction) for axis in axes]
    for corner in _corners(axes, image.shape[2:]):
        if needs_grad[0]:
            image_grad = _scatter(image_grad, corner, corner.weight.unsqueeze(1) * reaching)
        if any(needs_grad[1:]):
            pulled = (grad * _gather(flat, corner)).sum(1)
            slopes = [slope + by * pulled for slope, by in zip(slopes, corner.slopes, strict=True)]
    gradients = [image_grad.reshape(image.shape).to(image.dtype)] if needs_grad[0] else []
    coordinate_grad = torch.stack(slopes, 1)
    if mode != "nearest":
        coordinate_grad = torch.where(finite.unsqueeze(1), coordinate_grad, torch.nan)
    if needs_grad[1]:
        assert ddf is not None
        gradients.append(coordinate_grad.reshape(ddf.shape).to(ddf.dtype))
    if needs_grad[2]:
        assert affine is not None
        gradients.append((coordinate_grad @ _homogeneous(size, coordinate_grad).T).to(affine.dtype))
    return gradients


class Axis(NamedTuple):
    """Where the coordinates of all output voxels lie along one axis of the image; each (B, voxels).

    Attributes:
        lower: the voxel at or below.
        fraction: of a voxel that the coordinate lies above it, 0 to 1; 0 throughout for ``nearest``.
        slope: the derivative of ``fraction`` with respect to the coordinate before padding: 1, -1 or 0.
    """

    lower: torch.Tensor
    fraction: torch.Tensor
    slope: torch.Tensor


class Corner(NamedTuple):
    """One of the 2^n voxels around each coordinate; each (B, voxels).

    Attributes:
        voxel: its index in the flat image.
        inside: whether it lies in the image; outside there is 0.
        weight: its share in the value.
        slopes: the derivative of ``weight`` with respect to the coordinate, per axis.
    """

    voxel: torch.Tensor
    inside: torch.Tensor
    weight: torch.Tensor
    slopes: list[torch.Tensor]


def _homogeneous(size: list[int], like: torch.Tensor) -> torch.Tensor:
    """(n + 1, voxels): the coordinates of the output voxels, and a row of ones."""
    axes = [torch.arange(length, dtype=like.dtype, device=like.device) for length in size]
    grids = [grid.flatten() for grid in torch.meshgrid(*axes, indexing="ij")]
    return torch.stack([*grids, torch.ones_like(grids[0])])


def _axes(
    image: torch.Tensor,
    ddf: torch.Tensor | None,
    affine: torch.Tensor | None,
    size: list[int],
    mode: str,
    padding_mode: str,
) -> tuple[list[Axis], torch.Tensor]:
    """Each axis of the image, and which coordinates are finite (B, voxels)."""
    flat = image.to(compute_dtype(image))
    voxels = _homogeneous(size, flat)
    coordinates = voxels[:-1].expand(image.shape[0], -1, -1) if affine is None else affine.to(flat.dtype) @ voxels
    if ddf is not None:
        coordinates = coordinates + _flat(ddf.to(flat.dtype))
    finite = coordinates.isfinite().all(1)
    inside = torch.where(finite.unsqueeze(1), coordinates, 0.0)
    return [_axis(inside[:, i], length, mode, padding_mode) for i, length in enumerate(image.shape[2:])], finite


def _axis(coordinate: torch.Tensor, length: int, mode: str, padding_mode: str) -> Axis:
    coordinate, slope = _pad(coordinate, length, padding_mode)
    if mode == "nearest":
        still = torch.zeros_like(coordinate)
        return Axis(coordinate.round().long(), still, still)
    lower = coordinate.floor()
    return Axis(lower.long(), coordinate - lower, slope)


def _pad(coordinate: torch.Tensor, length: int, padding_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The coordinate within the image that a padding mode looks at, and its derivative.

    For ``zeros`` coordinates stop a voxel outside, where every weight is 0.
    """
    slope = torch.ones_like(coordinate)
    low, high = (-1.0, float(length)) if padding_mode == "zeros" else (0.0, length - 1.0)
    if padding_mode == "reflection" and length > 1:
        slope = torch.where(coordinate < 0, -slope, slope)
        coordinate = coordinate * slope
        turns = (coordinate / high).floor()
        coordinate = coordinate - turns * high
        odd = turns.remainder(2) == 1
        coordinate, slope = torch.where(odd, high - coordinate, coordinate), torch.where(odd, -slope, slope)
    moves = (coordinate >= low if padding_mode == "zeros" else coordinate > low) & (coordinate < high)
    return torch.where(moves, coordinate, coordinate.detach().clamp(low, high)), torch.where(moves, slope, 0.0)


def _corners(axes: list[Axis], shape: torch.Size) -> Iterator[Corner]:
    for offsets in itertools.product((0, 1), repeat=len(axes)):
        index = torch.zeros_like(axes[0].lower)
        inside = torch.ones_like(axes[0].lower, dtype=torch.bool)
        weights = []
        for axis, offset, length in zip(axes, offsets, shape, strict=True):
            at = axis.lower + offset
            inside = inside & (at >= 0) & (at < length)
            index = index * length + at.clamp(0, length - 1)
            weights.append(axis.fraction if offset else 1.0 - axis.fraction)
        slopes = []
        for i, (axis, offset) in enumerate(zip(axes, offsets, strict=True)):
            others = _product([weight for j, weight in enumerate(weights) if j != i], like=axis.slope)
            slopes.append(others * (axis.slope if offset else -axis.slope))
        yield Corner(index, inside, _product(weights, like=weights[0]), slopes)


def _product(factors: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    product = torch.ones_like(like)
    for factor in factors:
        product = product * factor
    return product


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """(B, C, voxels) of (B, C, spatial...)."""
    return tensor.reshape(*tensor.shape[:2], tensor.shape[2:].numel())


def _gather(flat: torch.Tensor, corner: Corner) -> torch.Tensor:
    """The corner's voxels (B, C, voxels) of an image (B, C, image voxels)."""
    found = flat.gather(2, corner.voxel.unsqueeze(1).expand(-1, flat.shape[1], -1))
    return torch.where(corner.inside.unsqueeze(1), found, 0.0)


def _scatter(flat: torch.Tensor, corner: Corner, values: torch.Tensor) -> torch.Tensor:
    """``flat`` (B, C, image voxels) plus values (B, C, voxels) at the corner's voxels, in the same order every time."""
    values = torch.where(corner.inside.unsqueeze(1), values, 0.0)
    if not flat.is_cuda:
        return flat.scatter_add(2, corner.voxel.unsqueeze(1).expand(-1, flat.shape[1], -1), values)
    batch = torch.arange(flat.shape[0], device=flat.device)[:, None, None]
    channel = torch.arange(flat.shape[1], device=flat.device)[None, :, None]
    return flat.index_put((batch, channel, corner.voxel.unsqueeze(1)), values, accumulate=True)  # sorts, on a GPU
