"""Images, masks and labels as they are given become the two sides of a pair, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import DataError
from ...metrics.label_volumes import structures
from ...spatial import Grid, resample
from .intensities import Scaling
from .sides import Side, flat_axis


@dataclass(frozen=True)
class Volume:
    """An image in the world.

    Attributes:
        voxels: (C, D, H, W) float32; axes in any order.
        grid: of the same axes.
    """

    voxels: torch.Tensor
    grid: Grid


def make_side(
    name: str,
    image: Volume,
    scaling: Scaling,
    mask: Volume | None = None,
    label: Volume | None = None,
    other_label: Volume | None = None,
) -> Side:
    """A side of the pair, with mask and labels on the image's grid.

    Args:
        name: ``fixed`` or ``moving``, for messages.
        image: of finite numbers.
        scaling: of its intensities.
        mask: above 0 is what counts; on any grid.
        label: whole numbers, on any grid; it becomes one channel for each structure that ``other_label`` has too.
        other_label: that of the other image.

    Raises:
        DataError: the image is constant or not finite, the mask is empty or lies outside of the image, or the labels
            have no structure in common.
    """
    voxels = image.voxels.float()
    if bad := int(voxels.numel() - voxels.isfinite().sum()):
        raise DataError(
            f"{bad} of {voxels.numel()} voxels of the {name} image are NaN or infinite; replace them, or for NaN set "
            "nan=fill or nan=mask"
        )
    there = None if mask is None else _mask_on(name, mask, image.grid)
    scaled = scaling(name, voxels, there)
    channels = None
    if label is not None and other_label is not None:
        common = sorted(set(structures(label.voxels)) & set(structures(other_label.voxels)))
        if not common:
            raise DataError("the fixed and the moving label have no structure in common")
        channels = _one_hot(label, image.grid, common)
    return Side(scaled, image.grid, there, channels)


def _mask_on(name: str, mask: Volume, grid: Grid) -> torch.Tensor:
    """(1, D, H, W), 0 or 1, on the image's grid."""
    if len(mask.voxels) != 1:
        raise DataError(f"the {name} mask has {len(mask.voxels)} channels; one is needed")
    if not bool(mask.voxels.isfinite().all()):
        raise DataError(f"the {name} mask has NaN or infinite voxels; 0 and 1 are needed")
    inside = (mask.voxels > 0).float()
    if not bool(inside.any()):
        raise DataError(f"the {name} mask is empty: above 0 is what counts")
    if mask.grid != grid:
        inside = (resample(inside, mask.grid, grid, padding_mode="zeros") >= 0.5).float()
        if not bool(inside.any()):
            raise DataError(f"the {name} mask lies outside of the {name} image by its header; save it with its affine")
    return inside


def _one_hot(label: Volume, grid: Grid, common: Sequence[int]) -> torch.Tensor:
    """(L, D, H, W), 0 or 1, on the image's grid, nearest neighbour."""
    voxels = label.voxels
    if label.grid != grid:
        voxels = resample(voxels, label.grid, grid, mode="nearest", padding_mode="zeros")
    if len(voxels) > 1:
        return (voxels[list(common)] > 0.5).float()
    if list(common) == [0]:  # a mask, whose one structure has the number of its channel
        return (voxels > 0).float()
    return torch.cat([(voxels == value).float() for value in common])


def check_pair(fixed: Side, moving: Side) -> None:
    """Raise DataError where two images cannot be a pair."""
    sides = {"fixed": fixed, "moving": moving}
    for name, side in sides.items():
        if side.grid.size.count(1) > 1:
            raise DataError(f"the {name} image has {_by(side)} voxels: a line or a point; give a slice or a volume")
    flat = [name for name, side in sides.items() if flat_axis(side.grid) is not None]
    if len(flat) == 1:
        thick = "moving" if flat == ["fixed"] else "fixed"
        raise DataError(
            f"the {flat[0]} image is a single slice, {_by(sides[flat[0]])}, and the {thick} one a volume, "
            f"{_by(sides[thick])}: both must be slices (2-D) or both volumes (3-D)"
        )
    if len(fixed.image) != len(moving.image):
        raise DataError(
            f"the fixed image has {len(fixed.image)} channels and the moving one {len(moving.image)}; they are "
            "compared one by one, so both need the same number"
        )


def _by(side: Side) -> str:
    return " x ".join(map(str, side.grid.size))
