"""Shapes of images and outputs that reach the edges of the warp's GPU kernels, against the float64 reference."""

from __future__ import annotations

import torch
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE

WARPED_SHAPES = {
    # the affine's gradient takes programs of 2048 voxels
    "several programs, 1-D": ((2, 1, 900), (2100,)),
    "several programs, 2-D": ((2, 2, 17, 9), (52, 41)),
    "several programs, 3-D": ((1, 1, 6, 7, 8), (13, 14, 15)),
    "channels": ((1, 7, 5, 6), (4, 5)),
    "one output voxel": ((2, 1, 3, 4, 5), (1, 1, 1)),
    "one voxel": ((1, 2, 1, 1, 1), (2, 3, 4)),
}


def assert_warps_like_the_reference(
    backend: str, shape: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype
) -> None:
    """The warp of an image (B, C, spatial...) by a field and an affine, and the gradients to all three."""
    generator = torch.Generator().manual_seed(3)
    dims = len(size)
    image = torch.rand(shape, generator=generator)
    ddf = torch.rand(shape[0], dims, *size, generator=generator) - 0.5
    affine = torch.zeros(shape[0], dims, dims + 1)
    for axis in range(dims):
        affine[:, axis, axis] = shape[axis + 2] / size[axis]
    affine += 0.1 * torch.rand(affine.shape, generator=generator)
    ddf, affine = ((32 * tensor).round() / 32 for tensor in (ddf, affine))  # coordinates are exact in float32
    incoming = torch.randn(*shape[:2], *size, generator=generator)
    results = []
    for name, real in ((backend, dtype), ("reference", torch.float64)):
        leaves = [tensor.to(real).requires_grad_() for tensor in (image, ddf, affine)]
        with uk.use_backend(name):
            warped = uk.warp(leaves[0], leaves[1], affine=leaves[2])
            results.append([warped.detach(), *torch.autograd.grad(warped, leaves, incoming.to(real))])
    (warped, *gradients), (expected, *wanted) = results
    assert_close(warped, expected, LOSS_TOLERANCE[dtype])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[dtype])
