"""Slices of a volume that state their places one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

_UNEVEN = 0.1  # part of a slice's distance by which a distance may differ from it


def even_step(path: Path, names: Sequence[str], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The step (3,) mm from one slice to the next.

    Args:
        path: the folder or file, for messages.
        names: of the slices, for messages.
        places: (N, 3) mm, in their order.

    Raises:
        DataError: the slices are not evenly apart, as where one is lost.
    """
    steps = np.diff(places, axis=0)
    usual = np.median(steps, axis=0)
    length = float(np.linalg.norm(usual))
    if length == 0:
        raise DataError(
            f"{path}: its {len(names)} DICOM slices state no places, or share them; a time series needs a file or "
            "folder per time, and a sweep without positions must be reconstructed first"
        )
    off = np.linalg.norm(steps - usual, axis=1)
    if off.max() > _UNEVEN * length:
        at = int(off.argmax())
        raise DataError(
            f"{path}: from {names[at]} to {names[at + 1]} it is {np.linalg.norm(steps[at]):g} mm, between other slices "
            f"{length:g} mm; a slice is missing or doubled; or resample the slices to one distance"
        )
    step: NDArray[np.float64] = (places[-1] - places[0]) / (len(places) - 1)
    return step
