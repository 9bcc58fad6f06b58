"""What multiplies the differences' penalties in the losses of displacement fields: the same numbers for every backend.

A loss adds up penalties, squares or magnitudes, of plain differences of neighbouring voxels. All else is in these
weights: what a difference is divided by to become a derivative, spacing, ``normalize``, how often a derivative counts,
and that the mean over an axis' forward differences is over one less of them than there are voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from math import prod
from typing import NamedTuple

import numpy as np
import torch


class FieldWeights(NamedTuple):
    """The weights of a loss of a field (B, n, spatial...).

    Attributes:
        penalties: of each component's differences, one component after the other.
        divisor: of the sum of all weighted penalties. For a mean, how many voxels the loss map has; else 1.
        ratios: each component's weights over those of the first component.
    """

    penalties: tuple[float, ...]
    divisor: int
    ratios: tuple[float, ...]

    @property
    def differences(self) -> int:
        """How many there are of each component."""
        return len(self.penalties) // len(self.ratios)

    def of_difference(self, index: int, u: torch.Tensor) -> torch.Tensor:
        """The weights of one difference, in the shape in which they multiply u (B, n, spatial...)."""
        values = self.penalties[index :: self.differences]
        return torch.tensor(values, dtype=u.dtype, device=u.device).reshape(1, -1, *[1] * (u.ndim - 2))


def axis_pairs(dims: int) -> Iterator[tuple[int, int]]:
    """The unordered pairs of a field's axes along which the bending energy takes derivatives, in order."""
    return combinations_with_replacement(range(dims), 2)


def smoothness_weights(
    shape: Sequence[int], penalty: str, scheme: str, spacing: Sequence[float] | None, normalize: bool, reduction: str
) -> FieldWeights:
    """The weights of the differences u(i + 1) - u(i), or u(i + 1) - u(i - 1) for ``central``, along each axis.

    The derivative is the difference, or half of it for ``central``, over the spacing; to normalise, times size(axis) /
    size(component's own axis).
    """
    voxel = None if spacing is None else tuple(spacing)
    return _smoothness_weights(
        tuple(shape), penalty == "l2", scheme == "central", voxel, normalize, reduction == "mean"
    )


@lru_cache(maxsize=256)
def _smoothness_weights(
    shape: tuple[int, ...], square: bool, central: bool, spacing: tuple[float, ...] | None, normalize: bool, mean: bool
) -> FieldWeights:
    sizes = shape[2:]
    penalties = []
    for own in sizes:
        for axis, size in enumerate(sizes):
            scale = (_ratio(size, own) if normalize else 1.0) * (1.0 / spacing[axis] if spacing else 1.0)
            scale *= 0.5 if central else 1.0
            share = size / (size - 1) if mean and not central and size > 1 else 1.0
            penalties.append(share * (scale * scale if square else scale))
    # A field without any difference has the loss 0, also if it has no voxel.
    divisor = _map_size(shape, 1 if central else 0) if mean and (central or max(sizes) > 1) else 1
    return FieldWeights(tuple(penalties), divisor, _ratios(sizes, 2 if square else 1, normalize))


@lru_cache(maxsize=256)
def bending_weights(shape: Sequence[int], normalize: bool, reduction: str) -> FieldWeights:
    """The weights of the squared second differences along each of :func:`axis_pairs`.

    Along one axis, the derivative is the difference; along two, a quarter of it, and it counts twice. To normalise,
    times size(axis) size(axis') / size(component's own axis).
    """
    sizes = shape[2:]
    penalties = []
    for own in sizes:
        for first, second in axis_pairs(len(sizes)):
            scale = _ratio(sizes[first] * sizes[second], own) if normalize else 1.0
            penalties.append((1.0 if first == second else 2.0 / 16.0) * scale * scale)
    return FieldWeights(
        tuple(penalties), _map_size(shape, 1) if reduction == "mean" else 1, _ratios(sizes, 2, normalize)
    )


def _ratio(numerator: int, size: int) -> float:
    """Rounded to float32 whatever the field's dtype, because MONAI 1.6 rounds it so: a reciprocal, then a product."""
    return float(np.float32(1) / np.float32(max(size, 1)) * np.float32(numerator))


def _ratios(sizes: Sequence[int], power: int, normalize: bool) -> tuple[float, ...]:
    return tuple((sizes[0] / size) ** power if normalize and size else 1.0 for size in sizes)


def _map_size(shape: Sequence[int], margin: int) -> int:
    """How many voxels a loss map has that leaves out a margin at each border."""
    return prod(shape[:2]) * prod(size - 2 * margin for size in shape[2:])
