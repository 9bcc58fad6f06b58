"""The warp in Triton: several programs, many channels and random calls, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from kernels import test_random_warps as random_warps
from kernels.warped_shapes import WARPED_SHAPES, assert_warps_like_the_reference

import usreg_kernels as uk
from usreg_kernels.ops.triton_backend import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; on a GPU, see test_gpu.py")


@pytest.mark.parametrize(("shape", "size"), WARPED_SHAPES.values(), ids=WARPED_SHAPES)
def test_shape(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    assert_warps_like_the_reference("triton", shape, size, torch.float32)


@pytest.mark.parametrize("op", random_warps.OPS)
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
