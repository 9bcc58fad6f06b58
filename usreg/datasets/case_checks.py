"""Checks of one case of a manifest that need only the files' headers and landmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..io.images import VolumeHeader
from ..io.landmarks import read_landmarks
from ..io.manifest import Case
from .reading import Reading

SIDES = ("moving", "fixed")

_LARGEST_SHIFT = 0.5  # voxels between an image's and its label's place, by their headers


@contextmanager
def at(case: Case, key: str) -> Iterator[None]:
    """Put the case and the key of the manifest in front of an error's text."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{case.where}.{key}: {error}") from error


def check_case(case: Case, reading: Reading | None = None) -> None:
    """Raise a DataError for the first of a case's files that is missing, no volume, or does not fit the others."""
    reading = reading or Reading()
    channels, counts = {}, {}
    for side in SIDES:
        with at(case, side):
            image = reading.header_of(case, side)
            _check_channels(case, side, image)
        for key in (f"{side}_label", f"{side}_mask"):
            if case.has(key):
                with at(case, key):
                    channels[key] = _check_overlay(case, key, image, reading)
        if case.has(key := f"{side}_landmarks"):
            with at(case, key):
                counts[key] = len(checked_landmarks(case, key, image))
    reading.check(case)
    for what, numbers in (("channels", {k: n for k, n in channels.items() if "label" in k}), ("points", counts)):
        if len(set(numbers.values())) > 1:
            given = ", ".join(f"'{key}' has {number}" for key, number in numbers.items())
            raise DataError(f"{case.where}: {given} {what}; they are paired one by one, so both need the same number")


def checked_landmarks(case: Case, key: str, image: VolumeHeader) -> NDArray[np.float64]:
    """Landmarks (N, 3) as voxel indices x, y, z of the image file's array, all inside the image.

    Raises:
        DataError: they cannot be read, or lie outside, as landmarks in mm do.
    """
    points = read_landmarks(case.landmarks(key))
    outside = ((points < -0.5) | (points > np.array(image.shape) - 0.5)).any(axis=1)
    if outside.any():
        number = int(outside.argmax())
        raise DataError(
            f"landmark {number}, {points[number].tolist()}, is outside the image of {image.shape} voxels; "
            f"landmarks are voxel indices (x, y, z) of the image file's array, not mm"
        )
    return points


def _check_channels(case: Case, key: str, header: VolumeHeader) -> None:
    if header.channels != 1:
        raise DataError(f"{case.files[key]}: has {header.channels} channels; one is needed")


def _check_overlay(case: Case, key: str, image: VolumeHeader, reading: Reading) -> int:
    """Check that a label or mask is on its image's grid, and return its number of channels."""
    path = case.files[key]
    header = reading.header_of(case, key)
    if key.endswith("mask"):
        _check_channels(case, key, header)
    if header.shape != image.shape:
        raise DataError(f"{path}: its shape is {header.shape} and its image's {image.shape}; they must be equal")
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*image.shape, 1]
    to_image = np.linalg.inv(image.affine) @ header.affine
    shift = float(np.abs(corners @ to_image.T - corners).max())
    if shift > _LARGEST_SHIFT:
        raise DataError(
            f"{path}: its header puts it up to {shift:.1f} voxels away from its image; save it with the image's affine"
        )
    return header.channels
