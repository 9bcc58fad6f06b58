"""Gaussian smoothing in plain PyTorch: the oracle of every other backend.

Along each axis, an image is padded by the filter's radius and filtered. The gradient takes the adjoint steps in
reverse: the filter, which is symmetric, spreads the incoming gradient over the padded axis, and each voxel of the
padding gives what it got to the voxel that it repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from usreg_kernels.ops.gaussian_smooth.weights import half_weights
from usreg_kernels.ops.operator import compute_dtype, loss_dtype


def forward(x: torch.Tensor, *, sigma: list[float], truncate: float, padding_mode: str) -> torch.Tensor:
    """The smoothed image (B, C, spatial...)."""
    smoothed = x.to(compute_dtype(x))
    for axis, weights in _axes(x, sigma, truncate):
        radius = len(weights) - 1
        sources = _sources(x.shape[axis], radius, padding_mode)
        if sources is None:
            padded = _zeros_around(smoothed, axis, radius)
        else:
            padded = smoothed.index_select(axis, torch.tensor(sources, device=x.device))
        smoothed = _filter(padded, axis, weights)
    return smoothed.to(loss_dtype(x.dtype))


def backward(
    grad_output: torch.Tensor,
    x: torch.Tensor,
    *,
    needs_grad: list[bool],
    sigma: list[float],
    truncate: float,
    padding_mode: str,
) -> list[torch.Tensor]:
    """The gradient of the image, if it is needed."""
    if not needs_grad[0]:
        return []
    gradient = grad_output.to(compute_dtype(x))
    for axis, weights in _axes(x, sigma, truncate):
        size, radius = x.shape[axis], len(weights) - 1
        spread = _filter(_zeros_around(gradient, axis, 2 * radius), axis, weights)
        gradient = spread.narrow(axis, radius, size)
        sources = _sources(size, radius, padding_mode)
        if sources is None:
            continue
        padding = [*range(radius), *range(radius + size, 2 * radius + size)]
        for places in _without_repeats(padding, sources):
            at = torch.tensor([sources[place] for place in places], device=x.device)
            folded = spread.index_select(axis, torch.tensor(places, device=x.device))
            gradient = gradient.index_add(axis, at, folded)
    return [gradient.to(x.dtype)]


def _axes(x: torch.Tensor, sigma: Sequence[float], truncate: float) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Each axis to smooth with its weights; none of an image without voxels."""
    for axis, width in enumerate(sigma, start=2):
        weights = half_weights(width, truncate)
        if len(weights) > 1 and x.shape[axis] > 0:
            yield axis, weights


def _filter(padded: torch.Tensor, axis: int, weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum around each voxel that is a radius away from both ends of the axis."""
    radius = len(weights) - 1
    size = padded.shape[axis] - 2 * radius
    total = weights[0] * padded.narrow(axis, radius, size)
    for k in range(1, radius + 1):
        total = total + weights[k] * padded.narrow(axis, radius - k, size)
        total = total + weights[k] * padded.narrow(axis, radius + k, size)
    return total


def _zeros_around(x: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    return F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [count, count])


def _sources(size: int, radius: int, padding_mode: str) -> list[int] | None:
    """Which voxel of an axis each of the padded axis repeats; None for zeros."""
    places = range(-radius, size + radius)
    if padding_mode == "zeros":
        return None
    if padding_mode == "border" or size == 1:
        return [min(max(place, 0), size - 1) for place in places]
    period = 2 * (size - 1)
    return [min(place % period, -place % period) for place in places]


def _without_repeats(places: Sequence[int], sources: Sequence[int]) -> Iterator[list[int]]:
    """The places in groups whose sources differ: a sum over a group adds to no voxel twice, in any order."""
    left = list(places)
    while left:
        group: dict[int, int] = {}
        for place in left:
            group.setdefault(sources[place], place)
        yield list(group.values())
        left = [place for place in left if group[sources[place]] != place]
