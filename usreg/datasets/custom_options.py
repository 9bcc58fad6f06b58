"""Checks of the values that ``custom_dataset`` takes from the config."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from .case_files import VOLUMES

logger = logging.getLogger(__name__)

PREPROCESS_STYLES = ("multigradicon",)
_DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))


def check_orientation(orientation: str) -> str:
    """Return the code in upper case, or raise a ValueError: one letter of each of L/R, A/P and I/S."""
    code = orientation.upper()
    if len(code) != 3 or not all(set(pair) & set(code) for pair in _DIRECTIONS):
        raise ValueError(f"orientation must be three letters, one of L/R, one of A/P, one of I/S, not {orientation!r}")
    return code


def check_range(key: str, values: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """Return two rising numbers within limits, or raise a ValueError."""
    if len(values) != 2 or not lowest <= values[0] < values[1] <= highest:
        raise ValueError(f"{key} must be two rising numbers [low, high] from {lowest} to {highest}, not {list(values)}")
    return float(values[0]), float(values[1])


def check_spacing(spacing: Sequence[float] | None) -> tuple[float, float, float] | None:
    """Return three positive numbers, or None, or raise a ValueError."""
    if spacing is None:
        return None
    if len(spacing) != 3 or not all(0 < mm < float("inf") for mm in spacing):
        raise ValueError(f"spacing must be three positive numbers [z, y, x] in mm, not {list(spacing)}")
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def check_labels(labels: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return different whole numbers above 0, or None, or raise a ValueError."""
    if labels is None:
        return None
    numbers = tuple(labels)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise ValueError(f"labels must be different whole numbers above 0, the values of the maps, not {list(labels)}")
    return numbers


def check_image_channels(channels: int) -> int:
    """Return a whole number of 1 or more, or raise a ValueError."""
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise ValueError(f"image_channels must be a whole number of 1 or more, not {channels!r}")
    return channels


def check_alignment(reference: str, margin: float) -> None:
    """Raise a ValueError unless the reference is a key of a volume and the margin a length."""
    if reference not in VOLUMES:
        raise ValueError(f"align_reference must be one of {', '.join(VOLUMES)}, not {reference!r}")
    if not 0 <= margin < float("inf"):
        raise ValueError(f"align_margin_mm must be 0 mm or more, not {margin}")


def check_preprocess_style(style: str) -> None:
    """Raise a ValueError for an unknown style."""
    if style not in PREPROCESS_STYLES:
        raise ValueError(f"preprocess_style must be {' or '.join(PREPROCESS_STYLES)}, not {style!r}")


def note_ignored(keys: Mapping[str, Any]) -> None:
    """Say, once in a process, which keys of older files were given and do nothing."""
    if given := tuple(key for key, value in keys.items() if value is not None):
        _note_once(given)


@functools.cache
def _note_once(keys: tuple[str, ...]) -> None:
    logger.warning("custom_dataset: %s of older files do nothing; leave them out", ", ".join(keys))
