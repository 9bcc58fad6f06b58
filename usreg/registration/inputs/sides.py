"""The two sides of a pair as the stages take them: image, mask and labels as channels of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...spatial import Grid, Transform, resample
from ..stages.levels import Level, make_levels


@dataclass(frozen=True)
class Side:
    """One image of a pair.

    Attributes:
        image: (C, D, H, W), each channel from 0 to 1.
        grid: of the image, and of mask and labels.
        mask: (1, D, H, W) from 0 to 1: what counts; None where everything does.
        labels: (L, D, H, W) from 0 to 1, one structure per channel; None where there are none.
    """

    image: torch.Tensor
    grid: Grid
    mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def to(self, device: str) -> Side:
        """The same on another device."""
        mask, labels = (None if part is None else part.to(device) for part in (self.mask, self.labels))
        return Side(self.image.to(device), self.grid, mask, labels)

    def without_labels(self) -> Side:
        """The same without labels."""
        return Side(self.image, self.grid, self.mask)

    def on(self, grid: Grid, transform: Transform) -> Side:
        """On another grid, through a transform from that grid's world. Mask and labels are 0 outside."""
        mask, labels = (
            None if part is None else resample(part, self.grid, grid, transform, padding_mode="zeros")
            for part in (self.mask, self.labels)
        )
        return Side(resample(self.image, self.grid, grid, transform), grid, mask, labels)

    def packed(self) -> torch.Tensor:
        """(1, C + 1 + L, D, H, W): image, mask and labels, as far as they are there."""
        return torch.cat([part for part in (self.image, self.mask, self.labels) if part is not None])[None]

    def levels(self, factors: Sequence[float], moving: bool = False) -> list[Level]:
        """The packed channels on levels, coarse or fine as they come.

        Args:
            factors: see :func:`make_levels`.
            moving: whether the levels are warped. Mask and labels are then 0 in the outermost voxels, which go on
                outside of the volume.
        """
        levels = make_levels(self.packed(), self.grid, factors)
        first = len(self.image)
        if moving and (self.mask is not None or self.labels is not None):
            levels = [Level(_with_empty_faces(level.image, first), level.grid) for level in levels]
        return levels


def flat_axis(grid: Grid) -> int | None:
    """The axis of an image of one slice; None for a volume."""
    return grid.size.index(1) if grid.size.count(1) == 1 else None


def _with_empty_faces(packed: torch.Tensor, first: int) -> torch.Tensor:
    """The channels from ``first`` on with 0 in the outermost voxels of each axis that has several."""
    packed = packed.clone()
    for axis, length in enumerate(packed.shape[2:], start=2):
        if length > 1:
            for place in (0, length - 1):
                packed[:, first:].select(axis, place).zero_()
    return packed
