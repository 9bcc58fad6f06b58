"""Pairs of volumes on which LNCC in low precision goes wrong, and one on which it does not."""

from __future__ import annotations

from collections.abc import Callable

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


def _noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _grid(shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Coordinates from -1 to 1 along the last three axes."""
    axes = [torch.linspace(-1, 1, size, dtype=torch.float64) for size in shape[-3:]]
    return list(torch.meshgrid(*axes, indexing="ij"))


def noise(shape: tuple[int, ...]) -> Pair:
    """Uniform in [0, 1)."""
    return _noise(shape, 0), _noise(shape, 1)


def offset(shape: tuple[int, ...]) -> Pair:
    """Two smooth volumes around 1000: variances are a millionth of the squares that they are made of."""
    z, y, x = _grid(shape)
    pred = (3 * z).sin() + (4 * y).cos() + (5 * x + z).sin()
    target = (4 * z + y).cos() + (3 * y - x).sin() + (4 * x).cos()
    return (1000 + pred).expand(shape), (1000 + target).expand(shape)


def offset_alike(shape: tuple[int, ...]) -> Pair:
    """A smooth volume around 1000, and the same one voxel on: terms of the gradient cancel almost wholly."""
    pred, _ = offset(shape)
    return pred, pred.roll(1, -3) + 0.1 * _grid(shape)[2]


def blocks(shape: tuple[int, ...]) -> Pair:
    """Noise with blocks of a constant 0.7, which no binary number equals: their variance is 0."""
    pred, target = _noise(shape, 2), _noise(shape, 3)
    for volume in (pred, target):
        volume[..., : shape[-1] // 2] = 0.7
    return pred, target


def ball(shape: tuple[int, ...]) -> Pair:
    """A bright, noisy ball on a background of zeros, where running sums leave a residue."""
    z, y, x = _grid(shape)
    inside = (z**2 + y**2 + x**2 < 0.25).double()
    moved = ((z - 0.1) ** 2 + y**2 + x**2 < 0.25).double()
    return 1000 * inside * (1 + 0.1 * _noise(shape, 4)), 1000 * moved * (1 + 0.1 * _noise(shape, 5))


def step(shape: tuple[int, ...]) -> Pair:
    """1000 on one side and 0 on the other, one voxel apart in the two volumes."""
    pred, target = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    pred[..., : shape[-1] // 2] = 1000
    target[..., : shape[-1] // 2 + 1] = 1000
    return pred, target


PAIRS: dict[str, Callable[[tuple[int, ...]], Pair]] = {
    "uniform noise": noise,
    "smooth, offset 1000": offset,
    "smooth, offset 1000, aligned but for a voxel": offset_alike,
    "blocks of 0.7": blocks,
    "bright ball on zeros": ball,
    "step 1000 to 0": step,
}
"""By name: (shape) -> (pred, target), float64."""
