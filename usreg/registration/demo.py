"""A made-up pair with a known answer: the abdomen of a person who turns and breathes between two scans.

The anatomy is a function of points in mm, so that each image is computed on its own grid without any interpolation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..io.landmark_writing import write_landmarks
from ..io.writing import write_volume
from ..spatial import Grid
from ..spatial.grid import Points
from .pair import Volume

LABELS = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen", 5: "spine"}


@dataclass(frozen=True)
class _Organ:
    """An ellipsoid: its label (0 for none), brightness, centre and radii in mm, x to the right, y anterior, z up."""

    label: int
    brightness: float
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]


_ANATOMY = (
    _Organ(0, 0.35, (0, 0, 0), (66, 48, 60)),  # body
    _Organ(0, 0.25, (0, 8, 0), (54, 32, 50)),  # abdominal cavity
    _Organ(1, 0.60, (28, 10, 18), (27, 24, 30)),
    _Organ(0, 0.45, (-14, 18, 14), (14, 11, 16)),  # stomach
    _Organ(4, 0.70, (-42, -6, 18), (11, 16, 17)),
    _Organ(2, 0.85, (30, -20, -18), (11, 9, 20)),
    _Organ(3, 0.85, (-30, -20, -12), (11, 9, 20)),
    _Organ(0, 0.55, (31, -19, -18), (5, 4, 11)),  # the kidneys' cores
    _Organ(0, 0.55, (-31, -19, -12), (5, 4, 11)),
    _Organ(5, 1.00, (0, -28, 0), (11, 10, 44)),
    _Organ(0, 0.90, (-7, -12, 0), (5, 5, 42)),  # aorta
    _Organ(0, 0.80, (9, -11, 0), (6, 4, 42)),  # vena cava
)
_EDGE = 2.0  # mm, width of a soft edge
_NOISE = 0.03  # of the brightness
_TURN = np.deg2rad(7.0)
_SHIFT = np.array([5.0, -4.0, 6.0])
_BREATH = 5.5  # mm, the longest displacement along each axis
_WAVE = 95.0  # mm


@dataclass(frozen=True)
class Pair:
    """Two images of one anatomy, with labels and landmarks.

    Attributes:
        fixed, moving: (1, X, Y, Z), brightness from 0 to about 1.
        fixed_label, moving_label: (1, X, Y, Z), whole numbers; see :data:`LABELS`.
        fixed_points, moving_points: (20, 3) mm, RAS: the same places in the two images, four for each label.
    """

    fixed: Volume
    moving: Volume
    fixed_label: Volume
    moving_label: Volume
    fixed_points: Points
    moving_points: Points


def make_pair(scale: float = 1.0) -> Pair:
    """A fixed and a moving image of a person who turned by 7 degrees, moved by 9 mm and breathed.

    The images have grids of their own. The result is the same on each call.

    Args:
        scale: of the number of voxels along each axis; 1 gives about 70 of 2 mm.
    """
    fixed = _grid((72, 60, 52), (2.0, 2.0, 2.5), (3.0, -2.0, 0.0), scale)
    moving = _grid((76, 66, 48), (1.9, 1.9, 2.8), (7.0, -5.0, 5.0), scale)
    organs = sorted((organ for organ in _ANATOMY if organ.label), key=lambda organ: organ.label)
    points = np.array([place for organ in organs for place in _landmarks(organ)])
    (image, label), (moved, moved_label) = _scan(fixed, lambda p: p, 0), _scan(moving, _to_anatomy, 1)
    return Pair(image, moved, label, moved_label, points, _from_anatomy(points))


def write_pair(folder: Path, pair: Pair) -> dict[str, str]:
    """Write a pair as NIfTI files and landmarks.

    Returns:
        The files by the names of the options of ``python -m usreg.register``: ``fixed``, ``fixed_label`` and so on.

    Raises:
        UsageError: the folder cannot be written to.
    """
    files = {}
    for name in ("fixed", "moving", "fixed_label", "moving_label"):
        volume: Volume = getattr(pair, name)
        dtype = np.uint8 if name.endswith("label") else np.float32
        path = folder / f"{name}.nii.gz"
        write_volume(path, volume.voxels.numpy().astype(dtype), volume.grid)
        files[name] = str(path)
    for name, points in (("fixed_landmarks", pair.fixed_points), ("moving_landmarks", pair.moving_points)):
        path = folder / f"{name}.csv"
        write_landmarks(path, points, "lps")
        files[name] = str(path)
    return files


def _grid(size: tuple[int, int, int], spacing: tuple[float, ...], centre: tuple[float, ...], scale: float) -> Grid:
    """About a centre; the first axis runs to the left, as scanners often store it."""
    count = [max(8, round(length * scale)) for length in size]
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, :3] *= np.array(size) / np.array(count)
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(count) - 1) / 2)
    return Grid((count[0], count[1], count[2]), affine)


def _landmarks(organ: _Organ) -> list[Points]:
    """The poles of an organ along its shortest and its longest axis."""
    centre, radii = np.array(organ.centre), np.array(organ.radii)
    steps = [np.eye(3)[axis] * radii[axis] for axis in (int(radii.argmin()), int(radii.argmax()))]
    return [centre + sign * step for step in steps for sign in (-1, 1)]


def _to_anatomy(points: Points) -> Points:
    """From the moving image's world to the fixed one's, where the anatomy is."""
    turned = (points - _SHIFT) @ _turn()
    waves = 2 * np.pi * turned / _WAVE
    x, y, z = waves.T
    return turned + _BREATH * np.stack([np.sin(y) * np.cos(z), np.sin(z + 1) * np.cos(x), np.sin(x + 2) * np.cos(y)], 1)


def _from_anatomy(points: Points) -> Points:
    """The inverse, by fixed-point iteration."""
    found = points @ _turn().T + _SHIFT
    for _ in range(200):
        found = found + (points - _to_anatomy(found)) @ _turn().T
    return found


def _turn() -> NDArray[np.float64]:
    cosine, sine = np.cos(_TURN), np.sin(_TURN)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def _scan(grid: Grid, to_anatomy: Callable[[Points], Points], seed: int) -> tuple[Volume, Volume]:
    """The image and the label on a grid."""
    points = to_anatomy(grid.to_world(np.indices(grid.size).reshape(3, -1).T))
    image, label = np.zeros(len(points)), np.zeros(len(points))
    for organ in _ANATOMY:
        radii = np.array(organ.radii, dtype=np.float64)
        outside = (np.linalg.norm((points - organ.centre) / radii, axis=1) - 1) * radii.min()  # mm, about
        inside = np.clip(0.5 - outside / _EDGE, 0, 1)
        image += inside * (organ.brightness - image)
        if organ.label:
            label[inside > 0.5] = organ.label
    texture = sum(np.sin(points @ wave + phase) for phase, wave in enumerate(_texture_waves()))
    noise = np.random.default_rng(seed).normal(0, _NOISE, len(points))
    image *= 1 + 0.05 * texture + noise
    voxels = [torch.from_numpy(values.reshape(1, *grid.size)).float() for values in (image, label)]
    return Volume(voxels[0], grid), Volume(voxels[1], grid)


def _texture_waves() -> list[Points]:
    """Six directions (3,), radians per mm, of wave lengths from 10 to 25 mm."""
    rng = np.random.default_rng(7)
    directions = rng.normal(size=(6, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return list(directions * 2 * np.pi / np.linspace(10, 25, 6)[:, None])
