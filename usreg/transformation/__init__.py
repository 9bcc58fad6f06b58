"""Applying transforms to images, labels and points."""

from __future__ import annotations

from .application import apply, apply_to_points
from .chains import TransformLike
from .images import Interpolation

__all__ = ["Interpolation", "TransformLike", "apply", "apply_to_points"]
