"""MONAI's classes on the fused ops, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from kernels.compare import assert_close
from monai.data import MetaTensor
from monai.losses import (
    BendingEnergyLoss,
    DiffusionLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
)
from monai.networks.blocks import DVF2DDF, Warp

import usreg_kernels as uk
from usreg_kernels import warp as fused_warp
from usreg_kernels.dispatch import is_worthwhile
from usreg_kernels.integrations import monai as integration
from usreg_kernels.windows import KERNEL_TYPES


@pytest.fixture
def patched() -> Iterator[None]:
    integration.patch()
    yield
    integration.unpatch()


def _losses() -> list[torch.nn.Module]:
    lncc = [LocalNormalizedCrossCorrelationLoss(3, 5, kind, "none") for kind in KERNEL_TYPES]
    return [*lncc, DiffusionLoss(True), BendingEnergyLoss(True, "sum")]


def _inputs(loss: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    count = 2 if isinstance(loss, LocalNormalizedCrossCorrelationLoss) else 1
    return tuple(torch.rand(1, 3, 6, 7, 8, generator=generator, dtype=torch.float64) for _ in range(count))


def test_patched_mutual_information_keeps_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI makes its bins in float32, and so its values."""
    fused: list[str] = []
    original = integration.mutual_information_loss
    monkeypatch.setattr(
        integration, "mutual_information_loss", lambda *a, **k: fused.append(k["kernel"]) or original(*a, **k)
    )
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(2, 1, 6, 7, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    losses = [
        GlobalMutualInformationLoss(*arguments)
        for arguments in (("gaussian",), ("gaussian", 9, 0.8, "none"), ("b-spline", 32, 0.5, "sum"), ("b-spline", 5))
    ]

    def results() -> list[torch.Tensor]:
        found = []
        for loss in losses:
            pred = images[0].clone().requires_grad_()
            value = loss(pred, images[1])
            found += [value.detach(), *torch.autograd.grad(value.sum(), pred)]
        return found

    expected = results()
    assert not fused
    integration.patch()
    try:
        for found, wanted in zip(results(), expected, strict=True):
            assert_close(found, wanted, 1e-5)
        with pytest.raises(ValueError, match="differing shape"):
            losses[0](images[0], images[1][..., 1:])
    finally:
        integration.unpatch()
    worthwhile = is_worthwhile("mutual_information", "cpu")
    assert fused == (["gaussian", "gaussian", "b-spline"] if worthwhile else [])  # five b-spline bins tell nothing


def test_patch_keeps_every_value_and_unpatch_gives_monai_back() -> None:
    losses = _losses()
    originals = [type(loss).forward for loss in losses]
    expected = [loss(*_inputs(loss)) for loss in losses]
    integration.patch()
    integration.patch()
    try:
        for loss, value, original in zip(losses, expected, originals, strict=True):
            assert type(loss).forward is not original
            assert_close(loss(*_inputs(loss)), value, 1e-10)
    finally:
        integration.unpatch()
    assert [type(loss).forward for loss in losses] == originals


@pytest.mark.usefixtures("patched")
def test_half_precision_is_finite_and_mixed_dtypes_are_promoted() -> None:
    zero = torch.zeros(1, 1, 5, 5, 5, dtype=torch.float16)
    loss = LocalNormalizedCrossCorrelationLoss()
    assert loss(zero, zero) == 0
    assert loss(zero, zero.float()).dtype == torch.float32


@pytest.mark.usefixtures("patched")
def test_meta_tensors_and_monais_own_errors() -> None:
    loss = LocalNormalizedCrossCorrelationLoss()
    image = MetaTensor(torch.rand(1, 1, 5, 5, 5))
    assert type(loss(image, image)) is torch.Tensor
    with pytest.raises(ValueError, match="ground truth has differing shape"):
        loss(image, image[..., :4])


def _blocks() -> list[torch.nn.Module]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*native grid_sample")  # MONAI announces its backend each time
        return [
            *(Warp(mode, padding) for mode in ("bilinear", "nearest") for padding in ("border", "zeros", "reflection")),
            Warp(jitter=True),
            Warp("bicubic"),
            DVF2DDF(),
        ]


def test_patched_blocks_keep_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the fused warp serves, and those that stay MONAI's: jitter, cubic interpolation, one slice."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 6, 7, 8, generator=generator, dtype=torch.float64)
    slices = torch.rand(2, 3, 1, 7, 8, generator=generator, dtype=torch.float64)
    fused: list[str] = []
    monkeypatch.setattr(integration, "warp", lambda *a, **k: fused.append(k["mode"]) or fused_warp(*a, **k))

    def results() -> list[torch.Tensor]:
        found = []
        for block in _blocks():
            for volume in (image, slices):
                ddf = 6 * torch.rand(volume.shape, generator=torch.Generator().manual_seed(1)).to(volume) - 3
                is_cubic = getattr(block, "_interp_mode", None) == "bicubic"
                if is_cubic:  # for images of two dimensions only
                    found.append(block(volume[:, :, 0], ddf[:, 1:, 0]))
                else:
                    found.append(block(ddf) if isinstance(block, DVF2DDF) else block(volume, ddf))
        return found

    expected = results()
    assert not fused
    integration.patch()
    try:
        patched = results()
        with pytest.raises(ValueError, match="input DDF shape must be"):
            _blocks()[0](image, slices)
    finally:
        integration.unpatch()
    assert bool(fused) is is_worthwhile("warp", "cpu")
    for found, wanted in zip(patched, expected, strict=True):
        assert_close(found, wanted, 1e-10)


@pytest.mark.usefixtures("patched")
def test_a_patched_warp_keeps_meta_tensors() -> None:
    image = MetaTensor(torch.rand(1, 1, 5, 6, 7), affine=2 * torch.eye(4))
    warped = _blocks()[0](image, torch.zeros(1, 3, 5, 6, 7))
    assert isinstance(warped, MetaTensor)
    assert torch.equal(warped.affine, image.affine)
    assert_close(warped.as_tensor(), image.as_tensor(), 1e-6)


@pytest.mark.usefixtures("patched")
def test_a_backend_that_cannot_warp_leaves_the_block_to_monai() -> None:
    image, ddf = torch.rand(1, 1, 5, 6, 7), torch.zeros(1, 3, 5, 6, 7)
    with uk.use_backend("cuda"):
        assert_close(_blocks()[0](image, ddf), image, 1e-6)
