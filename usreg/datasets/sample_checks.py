"""What a dataset returned, as tensors of the types that networks and losses work with, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
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
