"""Checks of one case of a manifest that need only the files' headers and landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..io.header import VolumeHeader
from ..io.landmarks import SPACES, Landmarks, read_landmarks
from ..io.manifest import Case
from ..spatial import Grid
from .case_files import SIDES, at, header_grid
from .reading import Reading

_LARGEST_SHIFT = 0.5  # voxels between an image's and its label's place, by their headers


def check_case(
    case: Case, landmarks_space: str | None = None, reading: Reading | None = None, image_channels: int = 1
) -> list[str]:
    """What is doubtful about a case whose files can be used.

    Args:
        case: of the manifest.
        landmarks_space: the config's, None where it is not set.
        reading: what is believed of headers.
        image_channels: that the images must have.

    Raises:
        DataError: for the first of the files that is missing, no volume, or does not fit the others.
    """
    reading = reading or Reading()
    channels, counts = {}, {}
    doubts: list[str] = []
    for side in SIDES:
        with at(case, side):
            image = reading.header_of(case, side)
            _check_image_channels(case, side, image, image_channels)
        for key in (f"{side}_label", f"{side}_mask"):
            if case.has(key):
                with at(case, key):
                    channels[key] = _check_overlay(case, key, header_grid(image), reading, doubts)
        if case.has(key := f"{side}_landmarks"):
            with at(case, key):
                counts[key] = _check_landmarks(case, key, header_grid(image), landmarks_space, doubts)
    reading.check(case)
    for what, numbers in (
        ("channels", {k: n for k, n in channels.items() if "label" in k and n > 1}),
        ("points", counts),
    ):
        if len(set(numbers.values())) > 1:
            given = ", ".join(f"'{key}' has {number}" for key, number in numbers.items())
            raise DataError(f"{case.where}: {given} {what}; they are paired one by one, so both need the same number")
    return doubts


def check_slices(case: Case, reading: Reading, image_size: Sequence[int], orientation: str) -> None:
    """Raise a DataError unless images are slices exactly where samples are, and volumes where these are volumes.

    A field has no displacement along an axis of one voxel in the sample. Along one of the file it would be free in a
    thicker sample, and a thinner sample would show one plane of a volume.

    Args:
        case: of the manifest.
        reading: what is believed of headers.
        image_size: (D, H, W) of samples.
        orientation: of their axes x, y, z.
    """
    thin = [length == 1 for length in image_size]
    for side in SIDES:
        header = reading.header_of(case, side)
        size = header_grid(header).reoriented(orientation[::-1]).size
        flat = [length == 1 for length in size]
        if flat == thin:
            continue
        what = f"{case.where}.{side}: {case.files[side]}: its shape is {header.shape}, {size} in a sample (z, y, x)"
        if not any(flat):
            raise DataError(
                f"{what}: a volume, and image_size {list(image_size)} is that of slices; cut slices out, or give an "
                "image_size of volumes"
            )
        if sum(flat) > 1:
            raise DataError(f"{what}: a line of voxels, which cannot be registered")
        wanted = [1 if one else max(length, 2) for one, length in zip(flat, image_size, strict=True)]
        raise DataError(
            f"{what}: a single slice, which is registered in 2-D: give image_size {wanted} for a training on slices, "
            "or stack the slices into one volume"
        )


def world_landmarks(case: Case, key: str, image: Grid, space: str | None) -> NDArray[np.float64]:
    """Landmarks (N, 3) in mm of the world, RAS.

    Args:
        image: the grid of their image's file.
        space: the config's ``landmarks_space``, None where it is not set.

    Raises:
        DataError: they cannot be read, or their file contradicts the config.
    """
    return read_landmarks(case.landmarks(key)).to_world(image, space)


def _check_landmarks(case: Case, key: str, image: Grid, space: str | None, doubts: list[str]) -> int:
    """Read landmarks, add a doubt about those outside their image, and return their number."""
    landmarks = read_landmarks(case.landmarks(key))
    outside = ~image.holds(landmarks.to_world(image, space))
    if outside.any():
        number = int(outside.argmax())
        doubts.append(
            f"{case.where}.{key}: {outside.sum()} of {len(outside)} landmarks are outside their image; the first is "
            f"landmark {number}, {landmarks.points[number].tolist()}, in the space '{landmarks.settled_space(space)}'."
            f"{_better_space(landmarks, image, space)}"
        )
    return len(landmarks.points)


def _better_space(landmarks: Landmarks, image: Grid, space: str | None) -> str:
    """Advice: the other spaces in which all landmarks are inside their image."""
    if landmarks.space in SPACES:
        return " Their file states this space: is it the file of this image?"
    fitting = [other for other in SPACES if image.holds(replace(landmarks, space=other).to_world(image)).all()]
    if not fitting:
        return " The config's landmarks_space says how they are read."
    return f" All are inside in the space {' and in '.join(fitting)}: is that the landmarks_space?"


def _check_channels(case: Case, key: str, header: VolumeHeader) -> None:
    if header.channels != 1:
        raise DataError(f"{case.files[key]}: has {header.channels} channels; one is needed")


def _check_image_channels(case: Case, side: str, header: VolumeHeader, wanted: int) -> None:
    if header.channels != wanted:
        needed = "one is needed" if wanted == 1 else f"{wanted} are needed"
        raise DataError(
            f"{case.files[side]}: has {header.channels} channels; {needed}, as the key image_channels of "
            "custom_dataset (--image-channels of python -m usreg.manifest check) says; a series in time is one case "
            "for each time"
        )


def _check_overlay(case: Case, key: str, image: Grid, reading: Reading, doubts: list[str]) -> int:
    """Check that a label or mask lies on its image by its own header, and return its number of channels."""
    path = case.files[key]
    header = reading.header_of(case, key)
    if key.endswith("mask"):
        _check_channels(case, key, header)
    own = header_grid(header)
    if not own.overlap(image):
        raise DataError(f"{path}: by its header it lies outside its image; save it with the affine of its own grid")
    if header.shape == image.size and (shift := _shift(own, image)) > _LARGEST_SHIFT:
        what = f"its header puts it up to {shift:.1f} voxels away from its image, which has as many voxels"
        if np.array_equal(own.affine, np.eye(4)):
            raise DataError(f"{path}: {what}, and says nothing but 1 mm; save it with the image's affine")
        doubts.append(f"{case.where}.{key}: {path}: {what}; the header is believed")
    return header.channels


def _shift(grid: Grid, image: Grid) -> float:
    """Voxels of the image between the corners of two boxes, whatever the order of their axes."""
    corners = grid.reoriented(image.orientation).corners
    return float(np.abs(image.to_voxels(corners) - image.to_voxels(image.corners)).max())
