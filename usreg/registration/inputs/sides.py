"""The two sides of a pair as the stages take them: image and mask as channels of one tensor, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ...spatial import Grid, Transform, resample
from ..stages.levels import Level, make_levels
from .structures import Structures


@dataclass(frozen=True)
class Side:
    """One image of a pair.

    Attributes:
        image: (C, D, H, W), each channel from 0 to 1.
        grid: of the image, and of mask and labels.
        mask: (1, D, H, W) from 0 to 1: what counts; None where everything does.
        labels: on the same grid, from 0 to 1; None where there are none.
    """

    image: torch.Tensor
    grid: Grid
    mask: torch.Tensor | None = None
    labels: Structures | None = None

    def to(self, device: str) -> Side:
        """The same on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Side(self.image.to(device), self.grid, mask, None if self.labels is None else self.labels.to(device))

    def without_labels(self) -> Side:
        """The same without labels."""
        return Side(self.image, self.grid, self.mask)

    def on(self, grid: Grid, transform: Transform) -> Side:
        """On another grid, through a transform from that grid's world. Mask and labels are 0 outside."""

        def there(channels: torch.Tensor) -> torch.Tensor:
            return resample(channels, self.grid, grid, transform, padding_mode="zeros")

        mask = None if self.mask is None else there(self.mask)
        labels = None if self.labels is None else self.labels.mapped(there)
        return Side(resample(self.image, self.grid, grid, transform), grid, mask, labels)

    def levels(self, factors: Sequence[float], moving: bool = False, labels: bool = False) -> list[Level]:
        """The image and, where there is one, the mask as (1, C + 1, D', H', W') on levels, coarse or fine as they come.

        Args:
            factors: see :func:`make_levels`.
            moving: whether the levels are warped. Mask and labels are then 0 in the outermost voxels, which go on
                outside of the volume.
            labels: whether the labels follow on the mask, one channel for each structure.
        """
        there = [self.image, self.mask, self.labels.channels() if labels and self.labels is not None else None]
        packed = torch.cat([part for part in there if part is not None])[None]
        levels, first = make_levels(packed, self.grid, factors), len(self.image)
        if moving and packed.shape[1] > first:
            levels = [Level(_with_empty_faces(level.image, first), level.grid) for level in levels]
        return levels

    def label_levels(self, factors: Sequence[float], moving: bool = False) -> list[Structures]:
        """The labels on the levels of :meth:`levels`, each structure only where it is."""
        assert self.labels is not None

        def on_level(channels: torch.Tensor, factor: float) -> torch.Tensor:
            level = make_levels(channels[None], self.grid, [factor])[0].image
            return (_with_empty_faces(level, 0) if moving else level)[0]

        return [self.labels.mapped(partial(on_level, factor=factor)) for factor in factors]


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
