"""The windows of local normalised cross-correlation: rectangular, triangular and gaussian.

A window is separable: one row of weights per spatial axis. Weights and volume are computed in float32 with the
same torch operations as MONAI 1.6 (``monai.losses.image_dissimilarity``), because MONAI keeps both as float32
buffers even when the images are float64; the two would not agree beyond seven digits otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F

KernelType = Literal["rectangular", "triangular", "gaussian"]
KERNEL_TYPES: tuple[KernelType, ...] = get_args(KernelType)

Weights = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
"""Weights of a window along z, y, x."""


@dataclass(frozen=True)
class Window:
    """A separable window.

    Attributes:
        weights: one tuple of ``kernel_size`` weights per spatial axis, symmetric about the centre.
        volume: the sum of the outer product of the weights; the N that turns a window sum into a window mean.
    """

    weights: tuple[tuple[float, ...], ...]
    volume: float


def _rectangular(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.float32, device="cpu")


def _triangular(size: int) -> torch.Tensor:
    """A box of about half the size convolved with itself; for size 3 this leaves only the centre, as in MONAI."""
    box_size = (size + 1) // 2
    if box_size % 2 == 0:
        box_size -= 1
    box = torch.ones((1, 1, box_size), dtype=torch.float32, device="cpu").div(box_size)
    return F.conv1d(box, box, padding=(size - box_size) // 2 + box_size // 2).reshape(-1)


def _gaussian(size: int) -> torch.Tensor:
    """Standard deviation size / 3, not normalised: the centre weighs 1."""
    sigma = size / 3.0
    x = torch.arange(-(size // 2), size // 2 + 1, dtype=torch.float32, device="cpu")
    return torch.exp(-0.5 / (sigma * sigma) * x**2)


_BUILDERS = {"rectangular": _rectangular, "triangular": _triangular, "gaussian": _gaussian}


@lru_cache(maxsize=256)
def make_window(kernel_type: str, kernel_size: tuple[int, ...]) -> Window:
    """The window of a type and of one odd size per spatial axis (z, y, x)."""
    with torch.autocast("cpu", enabled=False):  # which would round the weights to bfloat16, and the cache keep them
        rows = [_BUILDERS[kernel_type](size) for size in kernel_size]
        outer = rows[0]
        for row in rows[1:]:
            outer = torch.matmul(outer.unsqueeze(-1), row.unsqueeze(0))
        return Window(weights=tuple(tuple(row.tolist()) for row in rows), volume=float(outer.sum()))


def trimmed_weights(window: Window) -> Weights:
    """The weights along z, y, x without the zeros at their ends; a missing axis has a window of one."""
    rows: list[tuple[float, ...]] = [(1.0,)] * (3 - len(window.weights))
    for row in window.weights:
        while row[0] == 0.0 == row[-1]:
            row = row[1:-1]
        rows.append(row)
    return rows[0], rows[1], rows[2]
