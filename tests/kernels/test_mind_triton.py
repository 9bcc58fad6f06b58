"""MIND-SSC in Triton: volumes that take several slabs, groups or programs, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE, MAP_TOLERANCE
from usreg_kernels.ops.mind_ssc.reference import describe
from usreg_kernels.ops.triton_backend import INTERPRETED

pytest.importorskip("triton")
if INTERPRETED:
    from usreg_kernels.ops.mind_ssc import triton as mind_ssc

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; on a GPU, see test_gpu.py")

CALLS = {
    # shape, radius, dilation, and how many planes of one buffer the workspace holds
    "slabs": ((1, 1, 11, 3, 4), 1, 1, 18),
    "slabs, no window": ((1, 1, 7, 3, 4), 0, 2, 12),
    "groups of volumes": ((3, 1, 2, 3, 4), 1, 1, 16),
    "programs": ((1, 1, 5, 6, 7), 1, 2, 1000),
    "slabs of rows": ((1, 2, 13, 5), 1, 1, 18),
    "windows beyond the axes": ((1, 1, 2, 3, 3), 3, 4, 1000),
    "one voxel": ((1, 1, 1, 1, 1), 2, 2, 1000),
}


def _images(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(shape, generator=generator).to(dtype).requires_grad_() for _ in range(2)]


def _results(images: list[torch.Tensor], radius: int, dilation: int) -> list[torch.Tensor]:
    """Loss and both gradients; descriptor and gradient of the first image."""
    options = {"radius": radius, "dilation": dilation}
    loss = uk.mind_loss(*images, **options)
    descriptor = uk.mind_ssc(images[0], **options)
    weights = torch.linspace(0.5, 1.5, descriptor.numel(), dtype=descriptor.dtype).reshape(descriptor.shape)
    gradients = torch.autograd.grad(loss, images)
    return [loss, descriptor, *gradients, *torch.autograd.grad((weights * descriptor).sum(), images[0])]


def _planes(shape: tuple[int, ...]) -> int:
    """Bytes of a plane's maps, in one buffer."""
    return 4 * 12 * shape[3] * shape[4] if len(shape) == 5 else 4 * 4 * shape[3]


@pytest.mark.parametrize(("shape", "radius", "dilation", "planes"), CALLS.values(), ids=CALLS)
def test_agrees_with_the_reference(
    shape: tuple[int, ...], radius: int, dilation: int, planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mind_ssc, "WORKSPACE", planes * _planes(shape))
    images = _images(shape)
    with uk.use_backend("triton"):
        loss, descriptor, *gradients = _results(images, radius, dilation)
    with uk.use_backend("reference"):
        expected, values, *wanted = _results(
            [image.detach().double().requires_grad_() for image in images], radius, dilation
        )
    assert_close(loss, expected, LOSS_TOLERANCE[torch.float32])
    assert_close(descriptor, values, MAP_TOLERANCE[torch.float32])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[torch.float32], floor=1e-9)


@pytest.mark.parametrize(
    ("planes", "parts"), [(18, [(0, 3), (3, 7), (7, 11)]), (30, [(0, 5), (5, 11)]), (33, [(0, 11)])]
)
def test_slabs_of_a_volume(planes: int, parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 11 planes in three buffers, with 2 more on either side where there are several slabs."""
    shape = (2, 1, 11, 3, 4)
    monkeypatch.setattr(mind_ssc, "WORKSPACE", planes * _planes(shape))
    volumes = mind_ssc.Volumes(torch.empty(shape), 1, 1)
    found = volumes.slabs(3, 2)
    assert [(slab.volume, slab.begin, slab.end) for slab in found] == [(v, *part) for v in (0, 1) for part in parts]


def test_limits_of_v_and_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """V reaches over seven orders of magnitude: most voxels are limited."""
    images = _images((1, 2, 4, 5, 9))
    with torch.no_grad():
        for image in images:
            image *= 1e-3
            image[..., :2, :2, :2] *= 1e5
    mask = (torch.rand(1, 1, 4, 5, 9, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    doubles = [image.detach().double().requires_grad_() for image in images]
    limited = ~describe(doubles[0].detach(), 1, 1).is_free
    assert 0.3 < limited.double().mean() < 0.95
    with uk.use_backend("triton"):
        loss = uk.mind_loss(*images, radius=1, dilation=1, mask=mask)
        gradients = torch.autograd.grad(loss, images)
    with uk.use_backend("reference"):
        expected = uk.mind_loss(*doubles, radius=1, dilation=1, mask=mask.double())
        wanted = torch.autograd.grad(expected, doubles)
    assert_close(loss, expected, LOSS_TOLERANCE[torch.float32])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[torch.float32])
