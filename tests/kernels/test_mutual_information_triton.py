"""Mutual information in Triton: what its programs and tiles of bins reach, against the float64 reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.functional import PARZEN_KERNELS
from usreg_kernels.ops.triton_backend import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; on a GPU, see test_gpu.py")

KERNELS = pytest.mark.parametrize("kernel", PARZEN_KERNELS)


@dataclass(frozen=True)
class Feature:
    """A call: a shape, arguments, channels of the mask, dtype, and whether values are whole numbers."""

    shape: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    mask: int = 0
    dtype: torch.dtype = torch.float32
    whole: bool = False

    def images(self) -> list[torch.Tensor]:
        """Values from -0.1 to 1.1, of which a target depends on pred; or whole numbers up to 56."""
        generator = torch.Generator().manual_seed(1)
        if self.whole:
            made = [torch.randint(0, 57, self.shape, generator=generator).double() for _ in range(2)]
        else:
            pred, noise = (1.2 * torch.rand(self.shape, generator=generator) - 0.1 for _ in range(2))
            made = [pred, 0.7 * (1.0 - pred) ** 2 + 0.3 * noise]
        return [image.to(self.dtype).requires_grad_() for image in made]

    def loss_and_gradients(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """For an incoming gradient that differs by item."""
        arguments = dict(self.arguments)
        if self.mask:
            shape = (self.shape[0], self.mask, *self.shape[2:])
            weights = torch.rand(shape, generator=torch.Generator().manual_seed(2))
            arguments["mask"] = weights * (weights > 0.3)
        loss = uk.mutual_information_loss(*images, **arguments)
        incoming = torch.arange(1, loss.numel() + 1).view(loss.shape).to(loss)
        return [loss.detach(), *torch.autograd.grad(loss, images, incoming)]


GAUSSIAN = {"kernel": "gaussian"}
FEATURES = {
    # several programs per item, the last one not full
    "programs": Feature((1, 1, 2123)),
    "programs, gaussian": Feature((1, 1, 47, 44), GAUSSIAN),
    "programs, a mask for three channels": Feature((2, 3, 29, 24), {"reduction": "none"}, mask=1),
    "programs, gaussian, a mask per channel": Feature((2, 3, 9, 10, 4), {**GAUSSIAN, "reduction": "none"}, mask=3),
    # several tiles of the histogram
    "40 bins": Feature((2, 1, 300), {"num_bins": 40, "reduction": "sum"}),
    "100 bins, normalized": Feature((1, 1, 20, 20), {"num_bins": 100, "normalized": True}),
    "70 bins, gaussian": Feature((1, 2, 40), {**GAUSSIAN, "num_bins": 70}, mask=1),
    # few bins, and gaussians that reach no bin but one, or all
    "6 bins": Feature((2, 1, 300), {"num_bins": 6}),
    "2 bins, gaussian": Feature((2, 1, 300), {**GAUSSIAN, "num_bins": 2}),
    "narrow": Feature((1, 1, 300), {**GAUSSIAN, "sigma_ratio": 0.1}),
    "wide, normalized": Feature((1, 1, 300), {**GAUSSIAN, "sigma_ratio": 2.0, "normalized": True}),
    # every odd number lies between two bins of the box
    "whole numbers": Feature((1, 1, 500), whole=True),
    "one voxel": Feature((1, 1, 1)),
    "float16": Feature((2, 1, 300), dtype=torch.float16),
    "bfloat16, gaussian": Feature((2, 1, 300), GAUSSIAN, dtype=torch.bfloat16),
}


def _assert_like_the_reference(feature: Feature) -> None:
    images = feature.images()
    with uk.use_backend("triton"):
        loss, *gradients = feature.loss_and_gradients(images)
    with uk.use_backend("reference"):
        expected, *wanted = feature.loss_and_gradients([image.detach().double().requires_grad_() for image in images])
    assert_close(loss, expected, LOSS_TOLERANCE[feature.dtype], floor=1e-6 * loss.numel() ** 0.5)
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert gradient.dtype == feature.dtype
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[feature.dtype])


@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_feature(feature: Feature) -> None:
    _assert_like_the_reference(feature)


@KERNELS
def test_voxels_that_64_bits_count(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from usreg_kernels.ops.mutual_information import triton

    constants = triton.Plan.constants
    monkeypatch.setattr(triton.Plan, "constants", lambda self, block: {**constants(self, block), "WIDE": True})
    _assert_like_the_reference(Feature((2, 2, 150), {"kernel": kernel}, mask=1))


@KERNELS
def test_images_that_have_nothing_in_common(kernel: str) -> None:
    """The terms of a gradient cancel, and what is left of them still is right."""
    generator = torch.Generator().manual_seed(4)
    images = [torch.rand(1, 1, 4000, generator=generator).requires_grad_() for _ in range(2)]
    feature = Feature((1, 1, 4000), {"kernel": kernel, "num_bins": 8})
    with uk.use_backend("triton"):
        loss, *gradients = feature.loss_and_gradients(images)
    with uk.use_backend("reference"):
        expected, *wanted = feature.loss_and_gradients([image.detach().double().requires_grad_() for image in images])
    assert expected.abs() < 0.02
    assert_close(loss, expected, 1e-5)
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[torch.float32])


@KERNELS
def test_a_left_out_voxel_has_no_influence(kernel: str) -> None:
    images = Feature((2, 1, 300)).images()
    mask = torch.ones(2, 1, 300)
    with uk.use_backend("triton"):
        wanted = uk.mutual_information_loss(*images, kernel=kernel, reduction="none")
        assert torch.equal(uk.mutual_information_loss(*images, kernel=kernel, reduction="none", mask=mask), wanted)
        mask[..., 250:] = 0
        mask[1] = 0
        spoilt = [image.detach().clone() for image in images]
        for image, bad in zip(spoilt, (math.nan, 1e6), strict=True):
            image[..., 270] = bad
            image[..., 280] = -math.inf
            image.requires_grad_()
        loss = uk.mutual_information_loss(*spoilt, kernel=kernel, reduction="none", mask=mask)
        cut = [image.detach()[:1, :, :250].requires_grad_() for image in images]
        expected = uk.mutual_information_loss(*cut, kernel=kernel, reduction="none")
        assert_close(loss[:1], expected, LOSS_TOLERANCE[torch.float32])
        assert loss[1].abs() < 1e-6
        found = torch.autograd.grad(loss.sum(), spoilt)
        for gradient, of_cut in zip(found, torch.autograd.grad(expected.sum(), cut), strict=True):
            assert_close(gradient[:1, :, :250], of_cut, GRADIENT_TOLERANCE[torch.float32])
            assert not gradient[1].any()
            assert not gradient[..., 250:].any()


@KERNELS
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_not_finite_is_never_hidden(kernel: str, bad: float) -> None:
    for i in range(2):
        images = [image.detach().clone() for image in Feature((2, 1, 100)).images()]
        images[i][1, 0, 50] = bad
        images[0].requires_grad_()
        with uk.use_backend("triton"):
            loss = uk.mutual_information_loss(*images, kernel=kernel, reduction="none")
            gradient = torch.autograd.grad(loss.sum(), images[0])[0]
        assert loss[1].isnan()
        assert gradient[1].isnan().any()
        assert loss[0].isfinite() == (kernel == "gaussian")  # the range of a b-spline is that of the batch


@KERNELS
def test_constant_images(kernel: str) -> None:
    target = Feature((1, 1, 300)).images()[1]
    constant = torch.full_like(target, 0.37).requires_grad_()
    for images in ([constant, target], [target, constant], [constant, constant]):
        with uk.use_backend("triton"):
            loss = uk.mutual_information_loss(*images, kernel=kernel)
            gradients = torch.autograd.grad(loss, {id(image): image for image in images}.values())
        assert loss.abs() < 1e-5
        assert all(gradient.norm() < 1e-5 for gradient in gradients)


@pytest.mark.parametrize("arguments", [{"num_bins": 257}, {**GAUSSIAN, "sigma_ratio": 0.04}], ids=str)
def test_what_no_kernel_takes_is_declined(arguments: dict[str, Any]) -> None:
    with uk.use_backend("triton"), pytest.raises(uk.BackendError, match=r"up to 256 bins|at least 0.05 bins wide"):
        uk.mutual_information_loss(*Feature((1, 1, 30)).images(), **arguments)
