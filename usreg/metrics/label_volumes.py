"""How well the labels of two images agree in the world, each on the grid of its own file: their Dice."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from ..spatial import Affine, Grid, Transform, resample

_INSIDE = 0.5


def structures(label: torch.Tensor) -> list[int]:
    """The structures of a label (C, X, Y, Z): the numbers of its channels that are not empty, or its whole values.

    A volume of one channel with values above 1 holds one structure per whole value; 0 and 255 are a mask.
    """
    label = _without_255(label)
    if len(label) == 1 and float(label.max()) > 1 + _INSIDE:
        return [int(value) for value in label.unique().tolist() if value >= 1]
    return [channel for channel in range(len(label)) if bool((label[channel] > _INSIDE).any())]


def stretch(moving: Grid, fixed: Grid) -> Affine:
    """The map of worlds that puts the moving image's box onto the fixed one's, each turned to the axes of the world."""
    target = fixed.reoriented("RAS")
    return Affine(moving.reoriented("RAS").resized(target.size).affine @ np.linalg.inv(target.affine))


def mean_dice(
    moving: torch.Tensor, moving_grid: Grid, fixed: torch.Tensor, fixed_grid: Grid, placed: Transform | None = None
) -> float:
    """The mean Dice of the structures that both labels have, the moving one brought to the fixed one's grid.

    By nearest neighbour; outside its file a label is empty.

    Args:
        moving: (C, X, Y, Z), as :func:`structures` reads it.
        moving_grid: its grid.
        fixed: the other label.
        fixed_grid: its grid.
        placed: from the fixed label's world to the moving one's; None: both are one world.

    Returns:
        0 to 1; NaN where there is no common structure.
    """
    moving, fixed = _without_255(moving), _without_255(fixed)
    common = sorted(set(structures(moving)) & set(structures(fixed)))
    if not common:
        return math.nan
    valued = len(moving) == 1 and len(fixed) == 1 and max(float(moving.max()), float(fixed.max())) > 1 + _INSIDE
    there = resample(moving, moving_grid, fixed_grid, placed, mode="nearest", padding_mode="zeros").numpy()
    here = fixed.numpy()
    values = []
    for number in common:
        if valued:
            values.append(_dice(there[0] == number, here[0] == number))
        else:
            values.append(_dice(there[number] > _INSIDE, here[number] > _INSIDE))
    return float(np.mean(values))


def _without_255(label: torch.Tensor) -> torch.Tensor:
    """The label, with 1 in place of 255 where it holds nothing else."""
    return label / 255 if float(label.max()) == 255 and bool(((label == 0) | (label == 255)).all()) else label


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())
