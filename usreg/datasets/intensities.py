"""Intensities of files to [0, 1]: by a window for CT, by quantiles for everything else. Deterministic."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import DataError
from ..io.manifest import Case

logger = logging.getLogger(__name__)

_FLAT = 1e-2  # an image whose intensities in [0, 1] span less holds next to nothing


@dataclass(frozen=True)
class IntensityRule:
    """How intensities become [0, 1].

    Attributes:
        quantile_range: quantiles that become 0 and 1, for all but CT.
        ct_window: intensities in Hounsfield units that become 0 and 1, for CT.
        default_is_ct: whether images of unknown modality are CT.
    """

    quantile_range: tuple[float, float]
    ct_window: tuple[float, float]
    default_is_ct: bool

    def is_ct(self, case: Case, side: str) -> bool:
        """Whether an image is CT: its ``moving_modality`` or ``fixed_modality``, else ``modality``, has "ct" in it."""
        modality = case.metadata.get(f"{side}_modality", case.modality)
        return self.default_is_ct if modality is None else "ct" in modality.lower()

    def scaled(self, image: torch.Tensor, case: Case, side: str, there: torch.Tensor | None) -> torch.Tensor:
        """The image (C, D, H, W) in [0, 1], each channel by itself.

        Args:
            there: (D, H, W) bool, the voxels that come from the file; None for all of them.

        Raises:
            DataError: nothing is left of a channel's contrast; names the file.
        """
        return torch.stack([self._scaled(channel, case, side, there) for channel in image])

    def _scaled(self, channel: torch.Tensor, case: Case, side: str, there: torch.Tensor | None) -> torch.Tensor:
        voxels = channel if there is None else channel[there]
        try:
            if self.is_ct(case, side):
                low, high = self.ct_window
                _check_window(voxels, self.ct_window)
            else:
                low, high = _quantiles(voxels, self.quantile_range)
        except DataError as error:
            raise DataError(f"{case.files[side]}: {error}") from error
        return ((channel - low) / (high - low)).clamp(0, 1)


def shares_modality(case: Case) -> bool:
    """Whether one ``modality`` with "ct" stands for two images that its text tells apart, as in "CT-US"."""
    modality = (case.modality or "").strip().lower()
    own = any(key in case.metadata for key in ("moving_modality", "fixed_modality"))
    return "ct" in modality and modality != "ct" and not own


def describe_shared_modality(case: Case) -> str:
    """The warning for a case of which :func:`shares_modality` is true."""
    return (
        f"modality '{case.modality}' counts as CT for both images; if only one is CT, give moving_modality and "
        "fixed_modality"
    )


def note_shared_modality(cases: Sequence[Case]) -> None:
    """Warn, once for all cases, of a modality that may be that of one image only."""
    if doubtful := [case for case in cases if shares_modality(case)]:
        logger.warning(
            "%s and %d more cases: %s",
            *(doubtful[0].where, len(doubtful) - 1, describe_shared_modality(doubtful[0])),
        )


def _quantiles(voxels: torch.Tensor, quantile_range: Sequence[float]) -> tuple[float, float]:
    """The two quantiles of the intensities; the whole range where both are one value: nearly all is background."""
    low, high = np.quantile(voxels.numpy(), quantile_range)
    if low == high:
        low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        raise DataError(f"all voxels have the value {low:g}: there is nothing to register")
    return float(low), float(high)


def _check_window(voxels: torch.Tensor, window: tuple[float, float]) -> None:
    lowest, highest = float(voxels.min()), float(voxels.max())
    seen = min(highest, window[1]) - max(lowest, window[0])
    if seen < _FLAT * (window[1] - window[0]):
        raise DataError(
            f"the intensities, {lowest:g} to {highest:g}, have no contrast in the CT window {list(window)}; Hounsfield "
            "units are needed, or another ct_window, or another modality than CT"
        )
