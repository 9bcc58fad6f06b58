"""Where a registration starts: centres, moments, pairs of landmarks, and any transform as a field and an affine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...errors import DataError
from ...spatial import Affine, Chain, DisplacementField, Grid, Transform, resample
from ...spatial.grid import Points
from ..inputs.sides import Side, flat_axis

COARSE = 24
"""Voxels along the longest axis of the images by which the turns of principal axes are compared."""

THIN = 1e-3
"""Landmarks whose extent along an axis is less than this part of the longest one lie in a plane, or on a line."""


def at_headers(fixed: Grid, moving: Grid) -> Affine:
    """The identity of the world; of two slices, a shift along their common normal that puts one on the other.

    Raises:
        DataError: two slices lie in planes that are not parallel.
    """
    matrix = np.eye(4)
    normal, theirs = normal_of(fixed), normal_of(moving)
    if normal is not None and theirs is not None:
        if abs(normal @ theirs) < np.cos(np.deg2rad(15)):
            angle = np.rad2deg(np.arccos(min(1.0, abs(float(normal @ theirs)))))
            raise DataError(
                f"the two images are single slices whose planes meet at {angle:.0f} degrees by their headers: 2-D "
                "registration needs slices that are parallel"
            )
        matrix[:3, 3] = normal * (normal @ (moving.centre - fixed.centre))
    return Affine(matrix)


def normal_of(grid: Grid) -> NDArray[np.float64] | None:
    """(3,): the direction across an image of one slice; None for a volume."""
    if (axis := flat_axis(grid)) is None:
        return None
    rest = [grid.affine[:3, other] for other in range(3) if other != axis]
    normal = np.cross(rest[0], rest[1])
    return normal / np.linalg.norm(normal)


def by_centres(fixed: Grid, moving: Grid) -> Affine:
    """The shift that brings the centres of two boxes together."""
    return shifted(Affine(np.eye(4)), moving.centre - fixed.centre)


def by_moments(fixed: Side, moving: Side, start: Affine, axes: bool = False) -> Affine:
    """The start and then what brings the centres of mass together, and where wanted the principal axes.

    Intensities from 0 to 1 are the mass, times the mask. Principal axes have no sign: of the four turns that there are,
    and none at all, the one whose images correlate best is taken.

    Raises:
        DataError: an image has no mass, or (with ``axes``) is a single slice.
    """
    here, spread = _moments("fixed", fixed)
    there, their_spread = _moments("moving", moving)
    target = start(here[None])[0]
    moved_start = shifted(start, there - target)
    if not axes:
        return moved_start
    if flat_axis(fixed.grid) is not None:
        raise DataError("principal axes of the stage moments need volumes, and the images are single slices")
    moved = start.matrix[:3, :3] @ spread @ start.matrix[:3, :3].T
    mine, theirs = (np.linalg.eigh(one)[1] for one in (moved, their_spread))
    turns = [np.eye(3)]
    for signs in itertools.product((1.0, -1.0), repeat=3):
        turn = theirs @ np.diag(signs) @ mine.T
        if np.linalg.det(turn) > 0:
            turns.append(turn)
    candidates = [Affine(_turn_about(turn, there) @ moved_start.matrix) for turn in turns]
    return max(candidates, key=lambda candidate: _correlation(fixed, moving, candidate))


def _moments(name: str, side: Side) -> tuple[Points, NDArray[np.float64]]:
    """(3,) the centre of mass and (3, 3) the second moments about it, mm."""
    mass = side.image.double().mean(dim=0)
    if side.mask is not None:
        mass = mass * side.mask[0].double()
    total = float(mass.sum())
    if total <= 0:
        raise DataError(f"the {name} image has no mass: all its intensities are at the lower end of its window")
    size = side.grid.size
    marginals = [mass.sum(dim=tuple(a for a in range(3) if a != axis)).cpu().numpy() / total for axis in range(3)]
    places = [np.arange(length) for length in size]
    centre = np.array([float(m @ p) for m, p in zip(marginals, places, strict=True)])
    spread = np.diag([float(m @ (p - c) ** 2) for m, p, c in zip(marginals, places, centre, strict=True)])
    for one, other in itertools.combinations(range(3), 2):
        joint = mass.sum(dim=({0, 1, 2} - {one, other}).pop()).cpu().numpy() / total
        value = (places[one] - centre[one]) @ joint @ (places[other] - centre[other])
        spread[one, other] = spread[other, one] = value
    axes = side.grid.affine[:3, :3]
    return side.grid.to_world(centre[None])[0], axes @ spread @ axes.T


def _correlation(fixed: Side, moving: Side, transform: Affine) -> float:
    """Of the two images on a coarse grid of the fixed one."""
    size = [max(1, round(length * COARSE / max(fixed.grid.size))) for length in fixed.grid.size]
    grid = fixed.grid.resized(size)
    one = resample(fixed.image, fixed.grid, grid, antialias=True).mean(dim=0)
    other = resample(moving.image, moving.grid, grid, transform, padding_mode="zeros", antialias=True).mean(dim=0)
    pair = torch.stack([one.flatten(), other.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1].nan_to_num(-1.0))


def by_landmarks(fixed: ArrayLike, moving: ArrayLike, model: str = "rigid", normal: ArrayLike | None = None) -> Affine:
    """The rigid or affine map with the least squared distances between pairs of landmarks.

    The rigid one is that of Kabsch (Acta Cryst. A32, 1976), a rotation without a reflection.

    Args:
        fixed, moving: (N, 3) mm, the same places in the two images.
        model: ``rigid`` or ``affine``.
        normal: (3,) across the slice, for points of images of one slice; the map then stays in the plane.

    Raises:
        DataError: their numbers differ, are too small, or the points lie on a line (rigid) or in a plane (affine).
    """
    fixed, moving = np.asarray(fixed, dtype=np.float64), np.asarray(moving, dtype=np.float64)
    if len(fixed) != len(moving):
        raise DataError(
            f"there are {len(fixed)} fixed and {len(moving)} moving landmarks: they are paired one by one, so both "
            "need the same number"
        )
    frame = np.eye(3) if normal is None else _frame(np.asarray(normal, dtype=np.float64))
    dims = 3 if normal is None else 2
    least = dims if model == "rigid" else dims + 1
    if len(fixed) < least:
        raise DataError(f"a start from landmarks, {model}, needs {least} pairs or more; there are {len(fixed)}")
    centre, their_centre = fixed.mean(axis=0), moving.mean(axis=0)
    one, other = ((points - middle) @ frame for points, middle in ((fixed, centre), (moving, their_centre)))
    one, other = one[:, :dims], other[:, :dims]
    rank = dims - 1 if model == "rigid" else dims
    for name, points in (("fixed", one), ("moving", other)):
        _check_spread(name, points, rank, model)
    turn = np.eye(3)
    turn[:dims, :dims] = _rotation(one, other) if model == "rigid" else np.linalg.lstsq(one, other, rcond=None)[0].T
    matrix = np.eye(4)
    matrix[:3, :3] = frame @ turn @ frame.T
    matrix[:3, 3] = their_centre - matrix[:3, :3] @ centre
    return Affine(matrix)


def _check_spread(name: str, points: Points, rank: int, model: str) -> None:
    extents = np.linalg.svd(points, compute_uv=False)
    if extents[0] == 0 or extents[rank - 1] < THIN * extents[0]:
        shape = "at one point" if extents[0] == 0 or rank == 1 else "on a line" if rank == 2 else "in a plane"
        raise DataError(
            f"the {name} landmarks lie {shape}, which does not fix the {model} map: give more that lie elsewhere, or "
            "start in another way"
        )


def _rotation(one: Points, other: Points) -> NDArray[np.float64]:
    """The rotation R with the least squares of ``other - R one``."""
    u, _, vt = np.linalg.svd(other.T @ one)
    signs = np.ones(len(u))
    signs[-1] = np.sign(np.linalg.det(u @ vt))
    return u @ np.diag(signs) @ vt


def _frame(normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3): unit vectors as columns, the last one along the normal."""
    across = np.linalg.svd(normal[None])[2][1:]
    return np.column_stack([across[0], across[1], normal / np.linalg.norm(normal)])


def shifted(transform: Affine, vector: Points) -> Affine:
    """The transform and then a shift (3,) in mm."""
    matrix = transform.matrix.copy()
    matrix[:3, 3] += vector
    return Affine(matrix)


def _turn_about(turn: NDArray[np.float64], centre: Points) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, centre - turn @ centre
    return matrix


def as_field_and_affine(transform: Transform, grid: Grid) -> tuple[Affine, torch.Tensor | None]:
    """A transform as a field that a point meets first, and an affine.

    Args:
        transform: an affine, a field, or a chain of them in any order.
        grid: of the fixed image.

    Returns:
        The product of all affines, and (1, 3, D, H, W) float32 voxels of the grid; None without a field.
    """
    parts = _flattened([transform])
    matrix = np.eye(4)
    for part in parts:
        if isinstance(part, Affine):
            matrix = part.matrix @ matrix
    affine = Affine(matrix)
    if all(isinstance(part, Affine) for part in parts):
        return affine, None
    voxels = np.indices(grid.size).reshape(3, -1).T.astype(np.float64)
    places = affine.inverse()(transform(grid.to_world(voxels)))
    ddf = (grid.to_voxels(places) - voxels).T.reshape(1, 3, *grid.size)
    return affine, torch.from_numpy(np.ascontiguousarray(ddf)).float()


def _flattened(transforms: Sequence[Transform]) -> list[Transform]:
    parts: list[Transform] = []
    for transform in transforms:
        parts += _flattened(transform.transforms) if isinstance(transform, Chain) else [transform]
    return parts


def share_inside(fixed: Grid, moving: Grid, transform: Transform) -> float:
    """The share of the fixed box, from 0 to 1, that a transform maps into the moving one; by a raster of points.

    The direction across slices does not count.
    """
    steps = [(np.arange(20) + 0.5) / 20 * length - 0.5 if length > 1 else np.zeros(1) for length in fixed.size]
    raster = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    voxels = moving.to_voxels(transform(fixed.to_world(raster)))
    sizes = np.array(moving.size)
    inside = (voxels >= -0.5) & (voxels <= sizes - 0.5) | (sizes == 1) & (flat_axis(moving) is not None)
    return float(np.all(inside, axis=1).mean())


def field_in_mm(ddf: torch.Tensor, grid: Grid) -> DisplacementField:
    """A field (1, 3, D, H, W) in voxels of its own grid as one in mm."""
    matrix = torch.tensor(grid.affine[:3, :3]).to(ddf)
    return DisplacementField(grid, (matrix @ ddf[0].flatten(1)).reshape(3, *grid.size).cpu())
