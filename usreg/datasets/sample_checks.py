"""What a dataset returned, as tensors of the types that networks and losses work with, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import DataError

IMAGES = ("moving", "fixed")
FRACTIONS = ("moving_label", "fixed_label", "moving_mask", "fixed_mask")
"""Tensors of a sample that are 0 outside, 1 inside, and between the two at a boundary."""

_SLACK = 1e-3
"""How far outside 0 to 1 interpolation may put a fraction."""


def conformed(sample: Any, position: int = 0) -> dict[str, Any]:
    """A sample with tensors in place of arrays; images, fields, labels and masks in float32.

    Args:
        sample: what a dataset returned.
        position: names the sample in errors, where it has no ``case``.

    Raises:
        DataError: it is no dictionary, an image has whole numbers, a label or mask has values outside 0 to 1.
    """
    if not isinstance(sample, Mapping):
        raise DataError(
            f"a sample of the dataset is of the type {type(sample).__name__}; it must be a dictionary, as in "
            "{'moving': moving, 'fixed': fixed}, each a tensor (1, D, H, W)"
        )
    found = {key: _tensor(value) for key, value in sample.items()}
    case = f"case {found.get('case', f'number {position} of the batch')!r}"
    for key in IMAGES:
        if isinstance(found.get(key), torch.Tensor):
            found[key] = _image(key, found[key], case)
    for key in FRACTIONS:
        if isinstance(found.get(key), torch.Tensor):
            found[key] = _fractions(key, found[key], case)
    if isinstance(found.get("dvf"), torch.Tensor):
        found["dvf"] = found["dvf"].float()
    return found


CHANNELS = {"dvf": "3", "moving_label": "L", "fixed_label": "L"}
"""Channels of what lies beside the images in a sample; of masks it is 1."""


def check_shapes(sample: Mapping[str, Any], case: str, image_size: Sequence[int] | None = None) -> None:
    """Raise a DataError unless images, field, labels and masks of a sample have shapes that fit together.

    Args:
        sample: as :func:`conformed` returns it.
        case: for messages.
        image_size: of the config, whose order of axes the images must have; None where it is not known.
    """
    for key in IMAGES:
        value = sample.get(key)
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        if shape is None or len(shape) != 4 or 0 in shape:
            given = "missing" if value is None else type(value).__name__ if shape is None else shape
            raise DataError(
                f"{case}: '{key}' must be a tensor of the shape (1, D, H, W), or (C, D, H, W) with several channels, "
                f"not {given}.{_advice(shape)}"
            )
    moving, fixed = (tuple(sample[key].shape) for key in IMAGES)
    if moving != fixed:
        raise DataError(
            f"{case}: moving {moving} and fixed {fixed} must have one shape, channels included; custom_dataset resizes "
            "both to its image_size"
        )
    if image_size is not None:
        _check_order_of_axes(fixed, image_size, case)
    for key in (*FRACTIONS, "dvf"):
        if isinstance(sample.get(key), torch.Tensor):
            shape, channels = tuple(sample[key].shape), CHANNELS.get(key, "1")
            fits = len(shape) == 4 and shape[1:] == fixed[1:] and (channels == "L" or shape[0] == int(channels))
            if not fits:
                raise DataError(
                    f"{case}: '{key}' has the shape {shape}; beside images of {fixed} it must be ({channels}, "
                    f"{', '.join(map(str, fixed[1:]))})"
                )


def _advice(shape: tuple[int, ...] | None) -> str:
    """What to write for an image without an axis of channels, or for a slice."""
    if shape is None or len(shape) not in (2, 3):
        return ""
    slices = (
        " A 2-D image is trained as a volume of one slice, with 'image_size: [1, H, W]': give {}, labels and masks the "
        "same, and a field (3, 1, H, W) whose first channel is 0"
    )
    if len(shape) == 2:
        return slices.format("(H, W) as image[None, None]")
    volumes = " A volume (D, H, W) needs its channel in front: image[None]."
    return volumes + slices.format("(C, H, W) as image[:, None]")


def _check_order_of_axes(shape: tuple[int, ...], image_size: Sequence[int], case: str) -> None:
    """Raise a DataError where an image's axes are those of ``image_size`` and one channel, in another order.

    Otherwise volumes whose channel is not in front would pass for images of many channels.
    """
    wanted = (1, *image_size)
    if shape != wanted and sorted(shape) == sorted(wanted):
        raise DataError(
            f"{case}: the images have the shape {shape}; with image_size {list(image_size)} it is {wanted}: put the "
            "channel in front, and the axes in the order of image_size"
        )


def _tensor(value: Any) -> Any:
    """An array of numbers as a tensor; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    return torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))


def _image(key: str, image: torch.Tensor, case: str) -> torch.Tensor:
    if not image.is_floating_point():
        raise DataError(
            f"{case}: '{key}' is of the type {image.dtype}; images are floating-point numbers, best from 0 to 1, as "
            "networks and losses expect: scale it in the dataset, as in image.float() / 255"
        )
    return image.float()


def _fractions(key: str, values: torch.Tensor, case: str) -> torch.Tensor:
    values = values.float()
    least, most = map(float, torch.aminmax(values)) if values.numel() else (0.0, 0.0)
    if not (least >= -_SLACK and most <= 1 + _SLACK):
        raise DataError(
            f"{case}: '{key}' has values from {least:g} to {most:g}; they must be 0 outside, 1 inside, or between "
            "the two. Divide a mask of 0 and 255 by 255; give a map of several structures one channel for each: "
            "torch.stack([map == 1, map == 2])"
        )
    return values
