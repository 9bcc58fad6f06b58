"""Images through a chain of transforms: each voxel of the result is sampled once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from usreg_kernels import warp

from ..errors import DataError, UsageError
from ..spatial import Affine, Chain, DisplacementField, Grid, resample
from ..spatial.grid import Points
from .chains import Course, Link, mapped

Interpolation = Literal["linear", "nearest", "label"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

_BLOCK = 2**18
"""Voxels that are mapped at a time: coordinates of a whole volume would take ten times its memory."""

_EQUAL = 1e-9
"""Weights of two labels that differ by less are equal; the smaller label wins then."""


def check_voxels(voxels: NDArray[Any], interpolation: Interpolation, outside: float) -> None:
    """Raise a UsageError where an image cannot be sampled so."""
    if interpolation not in INTERPOLATIONS:
        raise UsageError(f"interpolation is {interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")
    whole = np.issubdtype(voxels.dtype, np.integer) or voxels.dtype == bool
    if interpolation == "label" and not whole and not bool((voxels == np.round(voxels)).all()):
        raise DataError(
            "the moving image has values that are no whole numbers: it is no map of labels; take linear or nearest"
        )
    if interpolation != "linear" and whole:
        span = np.iinfo(voxels.dtype) if voxels.dtype != bool else np.iinfo(np.uint8)
        if not (float(outside).is_integer() and span.min <= outside <= span.max):
            raise UsageError(f"outside is {outside:g}; voxels of type {voxels.dtype} cannot hold it")


def pull(
    voxels: NDArray[Any],
    source: Grid,
    target: Grid,
    links: Sequence[Link],
    interpolation: Interpolation = "linear",
    outside: float = 0.0,
) -> tuple[NDArray[Any], Course]:
    """What an image holds at the point that each voxel of ``target`` is mapped to.

    The image's box ends half a voxel beyond the outermost centres, as in ITK; its edge is repeated up to there.

    Args:
        voxels: (C, X, Y, Z).
        source: their grid.
        target: of the result.
        links: from the target's world to the source's.
        interpolation: ``"linear"``; ``"nearest"``, with halves rounded up; ``"label"``, the label whose voxels have the
            largest weight in the linear interpolation.
        outside: the value of points outside the image's box.

    Returns:
        (C, X', Y', Z'), of the voxels' type, but float32 for ``"linear"`` (float64 for float64 and integers of 32 bits
        or more); and what happened to the points.
    """
    check_voxels(voxels, interpolation, outside)
    kind = _linear_type(voxels.dtype) if interpolation == "linear" else voxels.dtype
    values = voxels.astype(kind, copy=False)
    if interpolation == "linear" and _is_one_warp(links, target):
        return _warped(values, source, target, links, outside), Course(int(np.prod(target.size)))
    sample = _SAMPLERS[interpolation]
    result = np.empty((len(voxels), *target.size), kind)
    flat, course = result.reshape(len(voxels), -1), Course()
    total = int(np.prod(target.size))
    for start in range(0, total, _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, total))
        centres = target.to_world(np.stack(np.unravel_index(numbers, target.size), axis=1))
        places = source.to_voxels(mapped(links, centres, course))
        inside = source.holds_voxels(places)
        flat[:, numbers[0] : numbers[-1] + 1] = outside
        flat[:, numbers[inside]] = sample(values, places[inside])
    return result, course


def _is_one_warp(links: Sequence[Link], target: Grid) -> bool:
    """Whether the kernel takes the chain as it is: a field on the target's own grid, or none, then affines only."""
    first = links[0].transform
    rest = links[1:] if isinstance(first, DisplacementField) and first.grid == target else links
    return all(isinstance(link.transform, Affine) for link in rest)


def _warped(values: NDArray[Any], source: Grid, target: Grid, links: Sequence[Link], outside: float) -> NDArray[Any]:
    """As :func:`pull`, without coordinates in memory and in a tenth of the time."""
    volume, chain = torch.from_numpy(values), Chain([link.transform for link in links])
    if all(isinstance(link.transform, Affine) for link in links):
        chain = reduce(lambda first, then: Affine(then.matrix @ first.matrix), chain.transforms)  # type: ignore
    found = resample(volume, source, target, chain)
    whole = volume.new_ones(1, *source.size)
    inside = resample(whole, source, target, chain, mode="nearest", padding_mode="zeros") > 0
    return found.masked_fill(~inside, outside).numpy()


def _linear_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    long = dtype.itemsize >= (4 if np.issubdtype(dtype, np.integer) else 8)
    return np.dtype(np.float64 if long else np.float32)


def _linear(voxels: NDArray[Any], places: Points) -> NDArray[Any]:
    coordinates = torch.from_numpy(np.ascontiguousarray(places.T.astype(voxels.dtype))).reshape(1, 3, -1, 1, 1)
    image = torch.from_numpy(voxels)[None]
    nowhere = image.new_zeros(3, 4)  # the places are coordinates, not displacements
    return warp(image, coordinates, affine=nowhere).reshape(len(voxels), -1).numpy()


def _nearest(voxels: NDArray[Any], places: Points) -> NDArray[Any]:
    nearest = np.clip(np.floor(places + 0.5).astype(np.int64), 0, np.array(voxels.shape[1:]) - 1)
    return voxels[:, nearest[:, 0], nearest[:, 1], nearest[:, 2]]


def _label(voxels: NDArray[Any], places: Points) -> NDArray[Any]:
    last = np.array(voxels.shape[1:]) - 1
    places = np.clip(places, 0, last)
    low = np.floor(places).astype(np.int64)
    part = places - low
    labels, weights = [], []
    for corner in product((0, 1), repeat=3):
        x, y, z = np.minimum(low + corner, last).T
        labels.append(voxels[:, x, y, z])
        weights.append(np.where(corner, part, 1 - part).prod(axis=1))
    return np.stack([_heaviest(np.stack(channel), np.stack(weights)) for channel in zip(*labels, strict=True)])


def _heaviest(labels: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[Any]:
    """Of labels (8, N) and weights (8, N): the label of each column (N,) with the largest sum of weights."""
    found = labels[0].copy()
    mixed = (labels != labels[0]).any(axis=0)
    some, weight = labels[:, mixed], weights[:, mixed]
    sums = np.stack([(weight * (some == one)).sum(axis=0) for one in some])
    heaviest = sums >= sums.max(axis=0) - _EQUAL
    found[mixed] = np.where(heaviest, some, some.max(axis=0)).min(axis=0)
    return found


_SAMPLERS: dict[Interpolation, Callable[[NDArray[Any], Points], NDArray[Any]]] = {
    "linear": _linear,
    "nearest": _nearest,
    "label": _label,
}
