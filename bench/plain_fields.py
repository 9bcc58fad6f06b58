"""The operations on images and fields in plain PyTorch, as a skilled user would write them."""

from __future__ import annotations

from functools import cache, partial

import torch
import torch.nn.functional as F


@cache
def _voxels(spatial: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(1, n, spatial...): the coordinates of every voxel, kept as VoxelMorph keeps them."""
    axes = [torch.arange(length, dtype=dtype, device=device) for length in spatial]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def _normalised(coordinates: torch.Tensor, spatial: torch.Size) -> torch.Tensor:
    """Voxel coordinates (B, n, spatial...) in the units and the order of ``grid_sample``."""
    last = torch.tensor(spatial, dtype=coordinates.dtype, device=coordinates.device) - 1
    grid = coordinates.movedim(1, -1)
    return (2 * grid / last - 1).flip(-1)


def voxelmorph_warp(image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
    """VoxelMorph's transformer as published (Balakrishnan et al., IEEE TMI 2019), with border padding.

    A buffer of voxel coordinates plus the field, normalised axis by axis, sampled.
    """
    locations = _voxels(ddf.shape[2:], ddf.dtype, ddf.device) + ddf
    normalised = [2 * (locations[:, i] / (length - 1) - 0.5) for i, length in enumerate(ddf.shape[2:])]
    grid = torch.stack(normalised[::-1], dim=-1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def ready_grid(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The image, and the field as a grid for :func:`sample`."""
    image, ddf = inputs
    grid = _normalised(_voxels(ddf.shape[2:], ddf.dtype, ddf.device) + ddf.detach(), image.shape[2:]).contiguous()
    return [image, grid.requires_grad_(ddf.requires_grad)]


sample = partial(F.grid_sample, padding_mode="border", align_corners=True)
"""``grid_sample`` and nothing else: what a warp costs at least that is built on it."""


class LongestAdam:
    """Adam without weight decay, each step scaled so that its longest vector is ``lr`` voxels long."""

    def __init__(self, field: torch.Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self._field, self._lr, self._betas, self._eps = field, lr, betas, eps
        self._first, self._second = torch.zeros_like(field), torch.zeros_like(field)
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Move the field, whose gradient is set."""
        gradient = self._field.grad
        assert gradient is not None
        beta1, beta2 = self._betas
        self._steps += 1
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        direction = self._first / (1 - beta1**self._steps)
        direction /= (self._second / (1 - beta2**self._steps)).sqrt_().add_(self._eps)
        longest = torch.linalg.vector_norm(direction, dim=1, keepdim=True).amax(dim=(2, 3, 4), keepdim=True)
        self._field -= direction * (self._lr / longest)


def jacobian_determinant(ddf: torch.Tensor) -> torch.Tensor:
    """(B, 3, D, H, W) to (B, 1, D, H, W): ``torch.gradient``, and the determinant term by term."""
    rows = torch.stack(torch.gradient(ddf, dim=(2, 3, 4)), dim=2)  # (B, component, derivative, D, H, W)
    matrix = rows + torch.eye(3, device=ddf.device, dtype=ddf.dtype).reshape(1, 3, 3, 1, 1, 1)
    (a, b, c), (d, e, f), (g, h, i) = (row.split(1, 1) for row in matrix.unbind(1))
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _gaussian(sigma: float, like: torch.Tensor) -> torch.Tensor:
    """The weights from the left end to the right one, cut at three sigma, of sum 1."""
    radius = int(3 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device) / sigma) ** 2)
    return weights / weights.sum()


def smooth_by_convolution(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """``conv3d`` along one axis after the other, each channel by itself, with the edge repeated outside."""
    weights, radius = _gaussian(sigma, x), int(3 * sigma + 0.5)
    maps = x.flatten(0, 1).unsqueeze(1)
    for axis in range(3):
        padding, shape = [0] * 6, [1, 1, 1, 1, 1]
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = radius
        shape[2 + axis] = -1
        maps = F.conv3d(F.pad(maps, padding, mode="replicate"), weights.view(shape))
    return maps.view(x.shape)


def smooth_by_sums(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Sums of shifted views along one axis after the other, in place: no product is written by itself."""
    weights, radius = _gaussian(sigma, x).tolist(), int(3 * sigma + 0.5)
    for axis in range(2, 5):
        padding = [0] * 6
        padding[8 - 2 * axis] = padding[9 - 2 * axis] = radius
        padded = F.pad(x, padding, mode="replicate")
        size = x.shape[axis]
        total = padded.narrow(axis, 0, size) * weights[0]
        for k in range(1, 2 * radius + 1):
            total = total.add_(padded.narrow(axis, k, size), alpha=weights[k])
        x = total
    return x
