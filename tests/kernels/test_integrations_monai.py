"""MONAI's classes on the fused ops, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernels.compare import assert_close
from monai.data import MetaTensor
from monai.losses import BendingEnergyLoss, DiffusionLoss, LocalNormalizedCrossCorrelationLoss

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
