"""Intensities of an image to 0 to 1, for the losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...errors import DataError

FLAT = 1e-2
"""An image whose intensities span less than this part of its window holds next to nothing."""


@dataclass(frozen=True)
class Scaling:
    """How intensities become 0 to 1; what lies beyond is cut off.

    Attributes:
        quantiles: of the intensities that become 0 and 1; within the mask where there is one.
        window: the two intensities themselves, in place of quantiles: Hounsfield units of a CT.
    """

    quantiles: tuple[float, ...] = (0.005, 0.995)
    window: tuple[float, ...] | None = None

    def __call__(self, name: str, voxels: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """An image (C, D, H, W) of finite numbers, each channel from 0 to 1.

        Args:
            name: of the image, for messages.
            voxels: the image.
            mask: (1, D, H, W), above 0 where voxels count: quantiles are taken there.

        Raises:
            DataError: a channel is constant, or has no contrast in the window.
        """
        return torch.stack([self._scaled(name, channel, mask) for channel in voxels])

    def _scaled(self, name: str, channel: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen = channel if mask is None else channel[mask[0] > 0]
        lowest, highest = float(seen.min()), float(seen.max())
        if lowest == highest:
            where = "everywhere" if mask is None else "in its mask"
            raise DataError(f"the {name} image is constant ({lowest:g} {where}): there is nothing to register")
        if self.window is not None:
            low, high = self.window
            if min(highest, high) - max(lowest, low) < FLAT * (high - low):
                raise DataError(
                    f"the intensities of the {name} image, {lowest:g} to {highest:g}, have no contrast in its window "
                    f"{[low, high]}; give it another window, or quantiles"
                )
        else:
            low, high = (float(value) for value in np.quantile(seen.numpy(), self.quantiles))
            if high <= low:
                low, high = lowest, highest
        return ((channel - low) / (high - low)).clamp(0, 1)
