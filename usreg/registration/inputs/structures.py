"""Labels of many structures, each kept only where it is: 30 structures of a head take a few volumes, and not 30."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

AT_A_TIME = 4
"""Structures whose whole channels exist at the same time, for functions that need whole channels."""

MARGIN = 2
"""Voxels of 0 around a structure: as many as linear interpolation and its derivatives look at."""


@dataclass(frozen=True)
class Box:
    """Some voxels of a grid, along each axis from ``first`` to before ``last``."""

    first: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(last - first for first, last in zip(self.first, self.last, strict=True))

    def of(self, volume: torch.Tensor) -> torch.Tensor:
        """These voxels of (..., D, H, W), a view."""
        for axis, (first, length) in enumerate(zip(self.first, self.size, strict=True), start=-3):
            volume = volume.narrow(axis, first, length)
        return volume

    def around(self, other: Box) -> Box:
        """The smallest box that holds both."""
        first = tuple(map(min, zip(self.first, other.first, strict=True)))
        return Box(first, tuple(map(max, zip(self.last, other.last, strict=True))))


@dataclass(frozen=True)
class Crop:
    """What of a channel is not 0, with :data:`MARGIN` voxels around it, as far as the channel goes.

    Attributes:
        values: (d, h, w).
        box: of the channel, where they are.
    """

    values: torch.Tensor
    box: Box

    def on(self, box: Box) -> torch.Tensor:
        """The values in a box that holds this one, 0 around them."""
        if box == self.box:
            return self.values
        around = self.values.new_zeros(box.size)
        first = tuple(one - other for one, other in zip(self.box.first, box.first, strict=True))
        last = tuple(one - other for one, other in zip(self.box.last, box.first, strict=True))
        Box(first, last).of(around).copy_(self.values)
        return around


@dataclass(frozen=True)
class Structures:
    """Labels on a grid, one channel per structure.

    Attributes:
        crops: of the channels; None for one that is 0 everywhere.
        size: of the grid, (D, H, W).
        device: of the crops.
    """

    crops: Sequence[Crop | None]
    size: tuple[int, ...]
    device: str | torch.device = "cpu"

    @staticmethod
    def of(channels: Iterable[torch.Tensor], size: Sequence[int]) -> Structures:
        """Of channels (D, H, W) of numbers or truth values, that come one after another, on the CPU."""
        return Structures([_crop(channel) for channel in channels], tuple(size))

    def channels(self) -> torch.Tensor:
        """(L, D, H, W) float32: all of them, whole."""
        return self._whole(self.crops)

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Structures:
        """What a function makes of the channels, which are whole for it, a few at a time.

        Args:
            function: of (k, D, H, W) float32, to (k, D', H', W'), each channel by itself.
        """
        found: list[Crop | None] = []
        size = self.size
        for first in range(0, len(self.crops), AT_A_TIME):
            result = function(self._whole(self.crops[first : first + AT_A_TIME]))
            found += [_crop(channel) for channel in result]
            size = tuple(result.shape[1:])
        return Structures(found, size, self.device)

    def to(self, device: str) -> Structures:
        """The same on another device."""
        crops = [None if crop is None else Crop(crop.values.to(device), crop.box) for crop in self.crops]
        return Structures(crops, self.size, device)

    def _whole(self, crops: Sequence[Crop | None]) -> torch.Tensor:
        whole = torch.zeros(len(crops), *self.size, device=self.device)
        for channel, crop in zip(whole, crops, strict=True):
            if crop is not None:
                crop.box.of(channel).copy_(crop.values)
        return whole


def _crop(channel: torch.Tensor) -> Crop | None:
    there = channel != 0
    planes = there.any(dim=2)
    along = (planes.any(dim=1), planes.any(dim=0), there.any(dim=0).any(dim=0))
    places = [one.nonzero()[:, 0].tolist() for one in along]
    if not places[0]:
        return None
    first = tuple(max(0, where[0] - MARGIN) for where in places)
    last = tuple(min(length, where[-1] + 1 + MARGIN) for where, length in zip(places, channel.shape, strict=True))
    return Crop(Box(first, last).of(channel).clone(), Box(first, last))
