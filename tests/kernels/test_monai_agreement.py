"""The reference against MONAI 1.6: values and gradients, in float64 to 1e-10, and in lower precision."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from kernels.compare import assert_close
from monai.losses import BendingEnergyLoss as MonaiBendingEnergy
from monai.losses import DiffusionLoss as MonaiDiffusion
from monai.losses import LocalNormalizedCrossCorrelationLoss as MonaiLNCC

import usreg_kernels as uk
from usreg_kernels.windows import KERNEL_TYPES

REDUCTIONS = ("mean", "sum", "none")
SPATIAL = (11, 8, 9)


@pytest.fixture(autouse=True)
def _reference():
    with uk.use_backend("reference"):
        yield


def _images(dims: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(dims)
    made = [torch.rand(2, 2, *SPATIAL[:dims], generator=generator, dtype=torch.float64) for _ in range(2)]
    return [image.to(dtype).requires_grad_() for image in made]


def _assert_agree(ours, theirs, tensors: list[torch.Tensor], tolerance: float) -> None:
    """Losses and gradients, the latter with a random incoming gradient."""
    a, b = ours(*tensors), theirs(*tensors)
    assert_close(a, b, tolerance)
    incoming = torch.rand(a.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    gradients = [torch.autograd.grad((loss * incoming).sum(), tensors) for loss in (a, b)]
    for mine, monais in zip(*gradients, strict=True):
        assert_close(mine, monais, tolerance)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel_type", KERNEL_TYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_lncc_float64(dims: int, kernel_type: str, reduction: str) -> None:
    for kernel_size, smooth_nr, smooth_dr in product((1, 3, 5, 9, 15), (0.0, 1e-3), (1e-5, 1.0)):
        arguments = (dims, kernel_size, kernel_type, reduction, smooth_nr, smooth_dr)
        _assert_agree(uk.LNCCLoss(*arguments), MonaiLNCC(*arguments), _images(dims), 1e-10)


@pytest.mark.parametrize("kernel_type", KERNEL_TYPES)
def test_lncc_float32(kernel_type: str) -> None:
    """MONAI's own float32 rounding is the limit here, on data that is kind to it."""
    arguments = (3, 5, kernel_type)
    _assert_agree(uk.LNCCLoss(*arguments), MonaiLNCC(*arguments), _images(3, torch.float32), 2e-5)


@pytest.mark.parametrize("kernel_type", KERNEL_TYPES)
def test_lncc_float16_against_monai_in_float32_on_the_same_values(kernel_type: str) -> None:
    half = _images(3, torch.float16)
    single = [image.detach().float().requires_grad_() for image in half]
    ours = uk.LNCCLoss(3, 5, kernel_type)(*half)
    theirs = MonaiLNCC(3, 5, kernel_type)(*single)
    assert ours.dtype == torch.float32
    assert_close(ours, theirs, 1e-5)
    scale = 65536.0  # as GradScaler would: a mean's gradient is below float16's range
    for mine, monais in zip(
        torch.autograd.grad(ours * scale, half), torch.autograd.grad(theirs * scale, single), strict=True
    ):
        assert mine.dtype == torch.float16
        assert_close(mine, monais, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lncc_half_against_monai_run_in_half_where_that_is_finite(dtype: torch.dtype) -> None:
    """MONAI's half-precision sums are off by percents, and NaN without a large smooth_dr."""
    pred, target = (image.detach() for image in _images(3, dtype))
    theirs = MonaiLNCC(3, 3, smooth_nr=1e-2, smooth_dr=0.5)(pred, target)
    ours = uk.LNCCLoss(3, 3, smooth_nr=1e-2, smooth_dr=0.5)(pred, target)
    assert theirs.isfinite()
    assert_close(ours, theirs, 0.05)


def test_lncc_is_finite_where_monai_in_half_is_not() -> None:
    zero = torch.zeros(1, 1, 6, 6, 6, dtype=torch.float16)
    assert not MonaiLNCC()(zero, zero).isfinite()
    assert uk.LNCCLoss()(zero, zero) == 0


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_field_losses(dims: int, normalize: bool, reduction: str, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(3)
    dvf = torch.rand(2, dims, *SPATIAL[:dims], generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    ours = uk.GradientSmoothnessLoss(scheme="central", normalize=normalize, reduction=reduction)
    _assert_agree(ours, MonaiDiffusion(normalize, reduction), [dvf], tolerance)
    _assert_agree(
        uk.BendingEnergyLoss(normalize, reduction), MonaiBendingEnergy(normalize, reduction), [dvf], tolerance
    )


@pytest.mark.parametrize("cls", [uk.LNCCLoss, MonaiLNCC])
@pytest.mark.parametrize(
    "arguments",
    [{"spatial_dims": 4}, {"kernel_size": 4}, {"kernel_type": "round"}, {"reduction": "median"}],
)
def test_lncc_constructor_raises_where_monai_does(cls: type, arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"."):
        cls(**arguments)


@pytest.mark.parametrize("cls", [uk.LNCCLoss, MonaiLNCC])
@pytest.mark.parametrize("shapes", [((1, 1, 5, 5), (1, 1, 5, 5)), ((1, 1, 5, 5, 5), (1, 1, 5, 5, 4))])
def test_lncc_call_raises_where_monai_does(cls: type, shapes: tuple) -> None:
    with pytest.raises(ValueError, match="shape"):
        cls()(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("shape", [(1, 3, 2, 5, 5), (1, 2, 5, 5, 5), (1, 3), (1, 4, 5, 5, 5, 5)])
@pytest.mark.parametrize(
    "loss",
    [uk.BendingEnergyLoss(), MonaiBendingEnergy(), uk.GradientSmoothnessLoss(scheme="central"), MonaiDiffusion()],
    ids=lambda loss: type(loss).__module__.split(".")[0] + "-" + type(loss).__name__,
)
def test_field_losses_raise_where_monai_does(loss: torch.nn.Module, shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"."):
        loss(torch.zeros(shape))
