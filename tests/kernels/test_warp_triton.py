"""The warp in Triton: several programs, many channels and random calls, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from kernels import test_random_warps as random_warps
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.ops.triton_backend import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; on a GPU, see test_gpu.py")

SHAPES = {
    # the affine's gradient takes programs of 2048 voxels
    "several programs, 1-D": ((2, 1, 900), (2100,)),
    "several programs, 2-D": ((2, 2, 17, 9), (52, 41)),
    "several programs, 3-D": ((1, 1, 6, 7, 8), (13, 14, 15)),
    "channels": ((1, 7, 5, 6), (4, 5)),
    "one output voxel": ((2, 1, 3, 4, 5), (1, 1, 1)),
    "one voxel": ((1, 2, 1, 1, 1), (2, 3, 4)),
}


@pytest.mark.parametrize(("shape", "size"), SHAPES.values(), ids=SHAPES)
def test_shape(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
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
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (image, ddf, affine)]
        with uk.use_backend(backend):
            warped = uk.warp(leaves[0], leaves[1], affine=leaves[2])
            results.append([warped.detach(), *torch.autograd.grad(warped, leaves, incoming.to(dtype))])
    (warped, *gradients), (expected, *wanted) = results
    assert_close(warped, expected, LOSS_TOLERANCE[torch.float32])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[torch.float32])


@pytest.mark.parametrize("op", random_warps.FUNCTIONS)
def test_random_calls(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_warps, "CASES", 40)
    monkeypatch.setattr(random_warps, "DTYPES", (torch.float32, torch.float16, torch.bfloat16))
    random_warps.test_random_calls(op, "triton")


def test_a_voxel_that_all_others_look_at() -> None:
    """The sum of integers has room for all of them; a gradient 2^20 times smaller than the largest is still there."""
    image = torch.zeros(1, 1, 3000, requires_grad=True)
    ddf = 1500.0 - torch.arange(3000.0).reshape(1, 1, -1)
    ddf[..., 0] = 7.0
    incoming = torch.full((1, 1, 3000), 3e38)
    incoming[..., 0] = 3e38 * 2.0**-20
    with uk.use_backend("triton"):
        (gradient,) = torch.autograd.grad(uk.warp(image, ddf), image, incoming / 4096)
    assert gradient[0, 0, 7].item() == pytest.approx(3e38 * 2.0**-32, rel=1e-6)
    assert gradient[0, 0, 1500].item() == pytest.approx(2999 * 3e38 / 4096, rel=1e-6)
    assert gradient.count_nonzero() == 2
