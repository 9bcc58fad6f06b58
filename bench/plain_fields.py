"""The operations on images and fields in plain PyTorch, as a skilled user would write them."""

from __future__ import annotations

from functools import cache, partial

import torch
import torch.nn.functional as F

from usreg_kernels.ops.gaussian_smooth.weights import gaussian_weights


def _voxels(spatial: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """(1, n, spatial...): the coordinates of every voxel."""
    axes = [torch.arange(length, dtype=like.dtype, device=like.device) for length in spatial]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


_kept_voxels = cache(_voxels)


def _normalised(coordinates: torch.Tensor, spatial: torch.Size) -> torch.Tensor:
    """Voxel coordinates (B, n, spatial...) in the units and the order of ``grid_sample``."""
    last = torch.tensor(spatial, dtype=coordinates.dtype, device=coordinates.device) - 1
    grid = coordinates.movedim(1, -1)
    return (2 * grid / last - 1).flip(-1)


def voxelmorph_warp(image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
    """VoxelMorph's transformer as published (Balakrishnan et al., IEEE TMI 2019), with border padding: a buffer of voxel
    coordinates plus the field, normalised axis by axis, sampled."""
    locations = _kept_voxels(ddf.shape[2:], image) + ddf
    normalised = [2 * (locations[:, i] / (length - 1) - 0.5) for i, length in enumerate(ddf.shape[2:])]
    grid = torch.stack(normalised[::-1], dim=-1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def ready_grid(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The image, and the field as a grid for :func:`sample`."""
    image, ddf = inputs
    grid = _normalised(_voxels(ddf.shape[2:], ddf) + ddf.detach(), image.shape[2:]).contiguous()
    return [image, grid.requires_grad_(ddf.requires_grad)]


sample = partial(F.grid_sample, padding_mode="border", align_corners=True)
"""``grid_sample`` and nothing else: what a warp costs at least that is built on it."""


def _padded(x: torch.Tensor, axis: int, radius: int) -> torch.Tensor:
    pads = [0, 0] * (x.ndim - 2)
    pads[2 * (x.ndim - 1 - axis)] = pads[2 * (x.ndim - 1 - axis) + 1] = radius
    return F.pad(x, pads, mode="replicate")


def convolved(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smoothing (B, C, D, H, W) by one grouped convolution per axis."""
    weights = torch.tensor(gaussian_weights(sigma), dtype=x.dtype, device=x.device)
    radius = len(weights) // 2
    for axis in (2, 3, 4):
        shape = [1] * 5
        shape[axis] = len(weights)
        kernel = weights.reshape(shape).expand(x.shape[1], *shape[1:])
        x = F.conv3d(_padded(x, axis, radius), kernel, groups=x.shape[1])
    return x


def summed_slices(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The same by a sum of shifted slices per axis."""
    weights = gaussian_weights(sigma)
    radius = len(weights) // 2
    for axis in (2, 3, 4):
        padded, length = _padded(x, axis, radius), x.shape[axis]
        x = weights[0] * padded.narrow(axis, 0, length)
        for shift, weight in enumerate(weights[1:], start=1):
            x.add_(padded.narrow(axis, shift, length), alpha=weight)
    return x


def jacobian_determinant(ddf: torch.Tensor) -> torch.Tensor:
    """(B, 1, D, H, W), of x + ddf(x): central differences, one-sided at the border."""
    rows = [torch.gradient(ddf[:, i], dim=(1, 2, 3)) for i in range(3)]
    (a, b, c), (d, e, f), (g, h, i) = rows
    a, e, i = a + 1, e + 1, i + 1
    return (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)).unsqueeze(1)


def folding(ddf: torch.Tensor) -> torch.Tensor:
    """The mean of what the determinant lies below 0."""
    return F.relu(-jacobian_determinant(ddf)).mean()


class ScaledAdam:
    """Adam's direction, scaled so that the longest vector is ``lr`` voxels, with the temporaries of plain arithmetic."""

    def __init__(self, field: torch.Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.field, self.lr, self.betas, self.eps = field, lr, betas, eps
        self.first, self.second, self.steps = torch.zeros_like(field), torch.zeros_like(field), 0

    @torch.no_grad()
    def step(self) -> None:
        """One step along ``field.grad``."""
        gradient, (beta1, beta2) = self.field.grad, self.betas
        self.steps += 1
        self.first = beta1 * self.first + (1 - beta1) * gradient
        self.second = beta2 * self.second + (1 - beta2) * gradient**2
        first, second = self.first / (1 - beta1**self.steps), self.second / (1 - beta2**self.steps)
        direction = first / (second.sqrt() + self.eps)
        self.field -= self.lr / direction.norm(dim=1).max() * direction
