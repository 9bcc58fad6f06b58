"""Random anatomy and random smooth fields for the synthetic datasets.

Everything here is numpy and SciPy code that runs on one thread, so that a sample's bits depend on nothing but its
generator: not on the process, the number of threads or the order of the samples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from .utils import SPLITS, check_split

FloatArray = NDArray[np.float32]

_ORGANS = 40
_EDGE_VOXELS = 2.0  # width of a soft edge


def sample_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The random generator of one sample, a pure function of (seed, split, index); no two of them share a stream."""
    key = (SPLITS.index(check_split(split)), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def ellipsoids(rng: np.random.Generator, image_size: tuple[int, int, int], soft: bool) -> tuple[FloatArray, FloatArray]:
    """A body full of overlapping organs: ellipsoids of random place, size, orientation and intensity.

    Args:
        rng: the sample's generator.
        image_size: (D, H, W) in voxels; an axis of one voxel lies in the middle.
        soft: edges are two voxels wide instead of sharp.

    Returns:
        The image (D, H, W) in [0, 1] and the mask (D, H, W) of its foreground (all ellipsoids), 0 or 1.
    """
    image = np.full(image_size, 0.05, np.float32)
    foreground = np.zeros(image_size, np.float32)
    axes = [np.linspace(-1, 1, size, dtype=np.float32) if size > 1 else np.zeros(1, np.float32) for size in image_size]
    edge = _EDGE_VOXELS * 2 / (min(size for size in image_size if size > 1) - 1) if soft else 0.0
    for number in range(1 + _ORGANS):
        body = number == 0
        centre = rng.uniform(-0.1, 0.1, 3) if body else rng.uniform(-0.85, 0.85, 3)
        radii = rng.uniform(0.75, 0.95, 3) if body else rng.uniform(0.1, 0.4, 3)
        intensity = rng.uniform(0.25, 0.4) if body else rng.uniform(0.1, 1.0)
        box, inside = _ellipsoid(axes, centre, radii, _random_rotation(rng), edge)
        image[box] += inside * (np.float32(intensity) - image[box])
        foreground[box] = np.maximum(foreground[box], inside > 0.5)
    return image, foreground


def _random_rotation(rng: np.random.Generator) -> FloatArray:
    """A rotation matrix (3, 3) from a random unit quaternion, uniform over all orientations."""
    quaternion = rng.normal(size=4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )


def _ellipsoid(
    axes: list[FloatArray],
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
    rotation: FloatArray,
    edge: float,
) -> tuple[tuple[slice, ...], FloatArray]:
    """The box around an ellipsoid, and how much of each of the box's voxels is inside, 0 to 1.

    Axes (the voxels' z, y and x), centre (3,), radii (3,) and the width of the edge are in normalised coordinates: the
    volume is from -1 to 1.
    """
    reach = radii.max() + edge
    offsets = [axis - np.float32(position) for axis, position in zip(axes, centre, strict=True)]
    box = tuple(slice(*np.searchsorted(offset, (-reach, reach)).tolist()) for offset in offsets)
    z, y, x = np.ix_(*(offset[part] for offset, part in zip(offsets, box, strict=True)))
    across = (row[0] * z + row[1] * y + row[2] * x for row in rotation / radii.astype(np.float32)[:, None])
    radius = np.sqrt(sum(np.square(distance) for distance in across))  # 1 on the surface
    if edge == 0:
        return box, (radius < 1).astype(np.float32)
    return box, np.clip((1 - radius) * np.float32(radii.mean() / edge) + np.float32(0.5), 0, 1)


def spline_field(
    rng: np.random.Generator, image_size: tuple[int, int, int], max_disp: float, cp_spacing: float
) -> FloatArray:
    """A random smooth displacement field: a uniform cubic B-spline with random control points.

    Each component of each control point is uniform in [-max_disp, max_disp], in normalised coordinates, in which the
    first and last voxel of an axis are at -1 and 1: ``max_disp`` times (size - 1) / 2 voxels. The spline stays within
    the range of its control points.

    Args:
        rng: the sample's generator.
        image_size: (D, H, W) in voxels.
        max_disp: largest displacement, as a part of half the extent.
        cp_spacing: distance of neighbouring control points in voxels.

    Returns:
        (3, D, H, W) displacement in voxels, components z, y, x.
    """
    cells = [max(1, math.ceil((n - 1) / cp_spacing)) for n in image_size]
    control = rng.uniform(-max_disp, max_disp, (3, *(n + 3 for n in cells)))
    control *= (np.array(image_size).reshape(3, 1, 1, 1) - 1) / 2
    return spline_upsample(control, image_size, cp_spacing).astype(np.float32)


def spline_upsample(
    control: NDArray[np.float64], image_size: tuple[int, int, int], cp_spacing: float
) -> NDArray[np.float64]:
    """Evaluate a uniform cubic B-spline, given by control points (3, ...), at every voxel: (3, D, H, W).

    Along each axis there are as many cells of ``cp_spacing`` voxels as cover it, and three more control points.
    """
    field = control
    for axis, size in enumerate(image_size, start=1):
        knots = cp_spacing * np.arange(-3, control.shape[axis] + 1)
        field = BSpline(knots, field, 3, axis=axis)(np.arange(size))
    return field
