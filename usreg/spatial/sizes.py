"""Sizes of images: those of slices have one voxel across."""

from __future__ import annotations

from collections.abc import Sequence


def whole_size(image_size: Sequence[int]) -> tuple[int, ...]:
    """(D, H, W) of a size; two numbers (H, W) are those of axial slices, (1, H, W)."""
    return (1, *image_size) if len(image_size) == 2 else tuple(image_size)
